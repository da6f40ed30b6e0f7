"""What a result came from: code, versions, choices, model, data, seeds. Never the environment, where secrets live."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "hydra-core",
    "lvis",
    "numpy",
    "omegaconf",
    "peft",
    "pillow",
    "pycocotools",
    "qwen-vl-utils",
    "scipy",
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "vrft",
    "wandb",
)


def provenance(
    config: dict[str, Any], *, choices: dict[str, Any], overrides: list[str], config_hash: str, data_hash: str
) -> dict[str, Any]:
    """One flat description of a run, ready for JSON.

    choices: Hydra's resolved choice of each group. data_hash: over the rows of all splits and their images.
    """
    model = config["model"]
    return {
        **code_state(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "choices": {group: name for group, name in choices.items() if not group.startswith("hydra/")},
        "overrides": overrides,
        "config_hash": config_hash,
        "data_hash": data_hash,
        "model_path": model["path"],
        "model_revision": model["revision"],
        "model_hash": weight_hash(Path(model["path"])),
        "seed": config["run"]["seed"],
    }


def code_state(package: Path) -> dict[str, Any]:
    """`commit` of the checkout that holds the package and whether it `is_dirty`; both None for an installed wheel."""
    git = ["git", "-C", str(package)]
    try:
        commit = subprocess.run(
            [*git, "log", "-1", "--format=%H", "--", "."], capture_output=True, text=True, check=True
        )
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "is_dirty": None}
    if not commit.stdout.strip():  # a wheel installed inside someone else's checkout
        return {"commit": None, "is_dirty": None}
    return {"commit": head.stdout.strip(), "is_dirty": bool(status.stdout.strip())}


def weight_hash(folder: Path) -> str | None:
    """SHA-256 over names and bytes of a local model's weight files; None for a model on the hub (see its revision)."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

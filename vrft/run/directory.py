"""A run directory: its lock, its provenance, and what is removed of it if the run is refused."""

from __future__ import annotations

import contextlib
import fcntl
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from vrft.config.package_files import PACKAGE
from vrft.config.schema import Model
from vrft.errors import UserError
from vrft.files import open_to_append, weight_hash
from vrft.models.prompt_settings import read_prompt_settings
from vrft.run import health

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
_OF_ITS_TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_")
LOCK_FILE, SLURM_FOLDER = ".lock", "slurm"
_OWN_FOLDERS = ("data", "images", health.FOLDER, SLURM_FOLDER)  # any other within a run directory is another run's


class OccupiedError(UserError):
    """Another process works in the run directory."""


@contextlib.contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Keep other runs out of the run directory while the block runs; raises `OccupiedError` if one works there.

    The lock is shared with the workers (`join`): after this process is killed, they still keep others out. filelock
    cannot turn an exclusive lock into a shared one. A file system without locks lets everybody in.
    """
    with open_to_append(run_dir / LOCK_FILE) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            join(file)  # not in one step with the line before: another parent may come between
        except BlockingIOError:
            at_work = [status for status in health.read_statuses(run_dir) if status["state"] != "finished"]
            ids = ", ".join(str(status["pid"]) for status in at_work)
            raise OccupiedError(
                f"another process works in run.dir={run_dir}"
                + (f" (processes {ids}, perhaps left behind by one that was killed)" if ids else "")
                + "; wait for its end, or end it"
            ) from None
        except OSError:
            pass
        yield


def join(file: TextIO) -> None:
    """Share the lock with the other processes of the run until the file is closed."""
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextlib.contextmanager
def claimed(path: Path, *, is_patient: bool = False) -> Iterator[bool]:
    """Yield True if this process alone holds the lock file while the block runs. is_patient: True waits for it."""
    with open_to_append(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if is_patient else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True


def provenance(
    model: Model,
    *,
    seed: int,
    choices: dict[str, Any],
    overrides: list[str],
    config_hash: str,
    data_hash: str,
) -> dict[str, Any]:
    """One flat description of a run, ready for JSON.

    choices: Hydra's resolved choice of each group. data_hash: over the rows of all splits and their images.
    """
    return {
        **code_state(PACKAGE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "choices": {group: name for group, name in choices.items() if not group.startswith("hydra/")},
        "overrides": overrides,
        "config_hash": config_hash,
        "data_hash": data_hash,
        "model_path": model.path,
        "model_family": read_prompt_settings(model.path).get("family") or model.family,
        "model_revision": model.revision,
        "model_hash": weight_hash(Path(model.path)),
        "seed": seed,
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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def fresh_run_dir(run_dir: Path, *, is_resuming: bool, key: str = "run.dir") -> Iterator[bool]:
    """Create the run directory, and remove it if the block fails, so that the same command can be given again.

    Yields True if it was empty. The cache of checked images stays: after one bad row the others need not be decoded
    again. key: the config's key that names the directory. Raises `UserError` if it is not empty and the run is not
    resuming.
    """
    has_content = run_dir.exists() and (not run_dir.is_dir() or _has_content(run_dir))
    if has_content and not is_resuming:
        raise UserError(
            f"{key} is {run_dir}, which exists and is not empty; choose another, or resume it with run.resume=true"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    is_to_stay = has_content
    try:
        yield not has_content
        is_to_stay = True
    except OccupiedError:
        is_to_stay = True  # by now it is another's
        raise
    finally:
        if not is_to_stay:
            remove_all_but_cache(run_dir)


def remove_all_but_cache(folder: Path) -> None:
    """Remove a run's own files but the cache of checked images, and those of its folders that this leaves empty.

    Where the folder is named after the time, as `run.dir` is by default, no later run asks for the cache: it goes, too.

    Its own are the files at the top of its folder, and all in the folders that are made before a worker starts. Any
    other folder within belongs to another run, which may be at work.
    """
    own = [path for path in folder.iterdir() if not path.is_dir() or path.name in _OWN_FOLDERS]
    own += [inner for path in own if not path.is_symlink() for inner in path.rglob("*")]
    for path in own:
        if not path.is_dir() and (_OF_ITS_TIME.match(folder.name) or not _is_cache(path)):
            path.unlink()
    for path in [*sorted((path for path in own if path.is_dir()), reverse=True), folder]:
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


def _has_content(folder: Path) -> bool:
    """Whether there is any file below the folder but a lock and the cache of checked images."""
    files = (path for path in folder.rglob("*") if not path.is_dir() and path.name != LOCK_FILE)
    return not all(map(_is_cache, files))


def _is_cache(path: Path) -> bool:
    """Whether a file is the list of checked images, or one of the images beside it."""
    from vrft.data.images import KEPT_FILE

    return path.name == KEPT_FILE or (path.parent.name == "images" and (path.parent.parent / KEPT_FILE).is_file())

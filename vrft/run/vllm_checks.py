"""What keeps vLLM from being used that only the rows, the checkpoint or a server tell, before weights are loaded."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from vrft.config.schema import VLLM
from vrft.config.vllm_checks import uses_vllm
from vrft.errors import UserError
from vrft.run.context import RunContext

_BEGIN = "start it by launch/vllm_server.sh"


def check_vllm(experiment: RunContext) -> None:
    """Raise `UserError` where vLLM would see other images than the model is asked about, or its server is not there."""
    config = experiment.config
    if not uses_vllm(config):
        return
    _check_images(experiment)
    if config.rollout.name == "vllm_server" and experiment.processes.is_main_process:
        check_server(config.rollout.vllm, config.model.path)


def _check_images(experiment: RunContext) -> None:
    """The checkpoint's own pixel limits, which vLLM reads, must leave every image at the size that the config asks for.

    Raises `UserError` naming a row where they do not.
    """
    from transformers import AutoProcessor

    from vrft.models.vllm import needs_no_resize

    model, memory = experiment.config.model, experiment.config.memory
    trusted = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    own = AutoProcessor.from_pretrained(model.path, **trusted)
    for row in (row for rows in experiment.rows.values() for row in rows):
        seen = experiment.frame_for_row(row).seen_wh
        if not needs_no_resize(seen, own):
            size = own.image_processor.size
            raise UserError(
                f"row {row['row_id']}: the image is seen at {seen[0]} × {seen[1]} pixels (memory.min_pixels="
                f"{memory.min_pixels}, memory.max_pixels={memory.max_pixels}), but vLLM reads the limits of "
                f"model.path={model.path}, {size['shortest_edge']} to {size['longest_edge']}, and would resize it "
                "again; choose limits within these, or rollout=shared_prefix"
            )


def check_server(settings: VLLM, model_path: str) -> None:
    """Raise `UserError` unless a vLLM server that takes weights answers there, with that model.

    settings: `rollout.vllm`, with host, port and timeout_s.
    """
    address = f"http://{settings.host}:{settings.port}"
    try:
        served = _get(f"{address}/v1/models")["data"][0]
    except (OSError, ValueError, LookupError) as error:
        raise UserError(
            f"no vLLM server answers at {address} (rollout.vllm.host, rollout.vllm.port): {error}; {_BEGIN}"
        ) from None
    names = {str(served.get("id")), str(served.get("root"))}
    if model_path not in names and not any(Path(name).resolve() == Path(model_path).resolve() for name in names):
        raise UserError(
            f"the vLLM server at {address} serves {served.get('id')}, but model.path is {model_path}; {_BEGIN} with it"
        )
    try:
        told = _get(f"{address}/server_info?config_format=json")["vllm_config"]
    except (OSError, ValueError, LookupError):
        told = {}
    if not told.get("weight_transfer_config"):
        raise UserError(f"the vLLM server at {address} cannot be given new weights; {_BEGIN}, which says so")


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())

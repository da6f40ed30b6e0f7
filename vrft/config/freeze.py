"""From a composed config to a frozen one: checked in full, batch sizes derived, plain values only."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vrft.config.batch_sizes import batch_sizes
from vrft.config.checks import judging_faults, model_faults, pair_faults, range_faults
from vrft.config.launch_checks import launch_faults, launch_shape_faults
from vrft.config.package_files import TINY_MODEL
from vrft.config.schema import Config
from vrft.config.shapes import flat, shape_faults
from vrft.config.vllm_checks import vllm_faults
from vrft.errors import CANNOT_RUN, UserError, raise_all


def freeze(
    composed: DictConfig,
    *,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    is_look: bool = False,
    is_elsewhere: bool = False,
) -> dict[str, Any]:
    """The config as plain values, with the section `derived` that the worker needs; `composed` is left alone.

    device: what `launch.device=auto` becomes. overrides: the user's own words; where nothing is trained, a checkpoint's
    card (`vrft.json`) sets what they do not. is_look: True where nothing will be trained, whatever the config says, so
    that what only a training needs may be missing. is_elsewhere: True where it is to run on another machine, so that
    packages and devices may be missing on this one. Raises `UserError` that lists all faults found.
    """
    return freeze_values(
        plain(composed), device=device, overrides=overrides, is_look=is_look, is_elsewhere=is_elsewhere
    )


def freeze_values(
    config: dict[str, Any],
    *,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    is_look: bool = False,
    is_elsewhere: bool = False,
) -> dict[str, Any]:
    """`freeze` of what `plain` has returned."""
    raise_all([*shape_faults(config, Config), *launch_shape_faults(config.get("launch"))], heading=CANNOT_RUN)
    if not config["evaluate"]["train"] or "predict" in config:
        from vrft.models.prompt_settings import with_card

        config = with_card(config, overrides)
        raise_all(list(shape_faults(config, Config)), heading=CANNOT_RUN)  # a card is a file like any other
    looked_at = {**config, "evaluate": {**config["evaluate"], "train": False}} if is_look else config
    faults = [*range_faults(looked_at), *launch_faults(looked_at)]
    faults += model_faults(looked_at, is_elsewhere=is_elsewhere)
    if "predict" not in config:  # one's own image is neither rewarded nor scored
        faults += pair_faults(looked_at)
    chosen = config["launch"]["device"]
    device = device if chosen == "auto" else chosen
    faults += vllm_faults(looked_at, device=device, is_elsewhere=is_elsewhere)
    raise_all(faults, heading=CANNOT_RUN)
    config["model"]["path"] = config["model"]["path"] or str(TINY_MODEL)
    config["derived"] = {"device": device, **batch_sizes(config)}
    return config


def freeze_plain(composed: DictConfig, schema: type) -> dict[str, Any]:
    """The config of a verb that needs no model, as plain values. Raises `UserError` that lists all faults."""
    config = plain(composed)
    raise_all(list(shape_faults(config, schema)), heading=CANNOT_RUN)
    if "reward" in config:
        raise_all(list(judging_faults(config)), heading=CANNOT_RUN)
    return config


def plain(composed: DictConfig) -> dict[str, Any]:
    """The config as nested dicts with interpolations resolved. Raises `UserError` for values that are not given."""
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        raise_all([f"{key} must be given: {key}=…" for key in missing], heading="The config is not complete:")
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"The config cannot be resolved: {error}") from None
    targets = [key for key, _ in flat(values) if key.rpartition(".")[2] == "_target_"]
    raise_all([f"{key}: no code is called by its name" for key in targets], heading=CANNOT_RUN)
    if isinstance(weights := values.get("reward", {}).get("weights"), dict):
        values["reward"]["weights"] = dict(flat(weights))  # an override of a.b.term arrives nested
    if str(path := values.get("model", {}).get("path")).startswith("~"):
        values["model"]["path"] = os.path.expanduser(path)
    if values.get("rollout", {}).get("sharing") is True:
        values["rollout"]["sharing"] = "on"  # YAML reads a bare on as true
    return values

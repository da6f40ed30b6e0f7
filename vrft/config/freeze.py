"""From a composed config to a frozen one: checked in full, batch sizes derived, plain values only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vrft.config.batch_sizes import derive, uneven_share
from vrft.config.checks import judging_faults, model_faults, pair_faults, range_faults
from vrft.config.launch_checks import launch_faults
from vrft.config.package_files import TINY_MODEL
from vrft.config.schema import Config
from vrft.config.section import Section, flat, with_values
from vrft.config.vllm_checks import vllm_faults
from vrft.errors import CANNOT_RUN, UserError, raise_all, shape_faults

S = TypeVar("S", bound=Section)


def freeze(
    composed: DictConfig,
    *,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    is_look: bool = False,
    is_elsewhere: bool = False,
) -> Config:
    """The frozen config, with the section `derived` that the worker needs; `composed` is left alone.

    device: what `launch.device=auto` becomes. overrides: the user's own words; where nothing is trained, a checkpoint's
    `vrft.json` sets what they do not. is_look: True to skip checks that only matter for training. is_elsewhere: True
    where the run is for another machine, so that packages and devices may be missing on this one. Raises `UserError`
    that lists all faults found.
    """
    return freeze_values(
        plain(composed), device=device, overrides=overrides, is_look=is_look, is_elsewhere=is_elsewhere
    )


def freeze_values(
    values: dict[str, Any],
    *,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    is_look: bool = False,
    is_elsewhere: bool = False,
) -> Config:
    """`freeze` of what `plain` has returned."""
    config = checked(values, Config)
    if not config.is_training:
        from vrft.models.prompt_settings import with_prompt_settings  # numpy: not for --help

        config = checked(with_prompt_settings(values, overrides), Config)  # vrft.json is a file like any other
    looked_at = with_values(config, {"evaluate.train": False}) if is_look else config
    faults = [*range_faults(looked_at), *launch_faults(looked_at.launch, run_dir=looked_at.run.dir)]
    faults += model_faults(
        looked_at.model, looked_at.deepspeed, is_training=looked_at.evaluate.train, is_elsewhere=is_elsewhere
    )
    if config.predict is None:  # one's own image is neither rewarded nor scored
        faults += pair_faults(looked_at)
    device = device if config.launch.device == "auto" else config.launch.device
    faults += vllm_faults(looked_at, device=device, is_elsewhere=is_elsewhere)
    if fault := uneven_share(config.trainer, config.memory, config.launch):
        faults.append(fault)
    raise_all(faults, heading=CANNOT_RUN)
    return derive(with_values(config, {"model.path": config.model.path or str(TINY_MODEL)}), device=device)


def freeze_plain(composed: DictConfig, schema: type[S]) -> S:
    """The frozen config of a verb that needs no model. Raises `UserError` that lists all faults."""
    config = checked(plain(composed), schema)
    if getattr(config, "reward", None) and "completions" not in schema.model_fields:  # which `vrft score` may lack
        faults = judging_faults(config.task, config.reward, config.trust_code)
        raise_all(list(faults), heading=CANNOT_RUN)
    return config


def checked(values: dict[str, Any], schema: type[S]) -> S:
    """The values as their schema has them. Raises `UserError` that lists all that it refuses."""
    raise_all(shape_faults(values, schema), heading=CANNOT_RUN)
    return schema.model_validate(values)


def plain(composed: DictConfig) -> dict[str, Any]:
    """The config as nested dicts with interpolations resolved. Raises `UserError` for values that are not given."""
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        raise_all([f"{key} must be given: {key}=…" for key in missing], heading="The config is not complete:")
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"The config cannot be resolved: {error}") from None
    targets = [key for key, _ in flat(values) if key.rpartition(".")[2] == "_target_"]
    raise_all([f"{key} is not allowed: a config calls no code by its name" for key in targets], heading=CANNOT_RUN)
    if isinstance(weights := values.get("reward", {}).get("weights"), dict):
        values["reward"]["weights"] = dict(flat(weights))  # an override of a.b.term arrives nested
    if values.get("rollout", {}).get("sharing") is True:
        values["rollout"]["sharing"] = "on"  # YAML reads a bare on as true
    return values

"""From a composed config to a frozen `Config`: checked in full, batch sizes derived."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vrft.config.batch_sizes import derive, uneven_share
from vrft.config.cross_checks import contradictions, judging_faults, model_faults, pair_faults
from vrft.config.launch_checks import launch_faults
from vrft.config.not_given import warn_of_toy_model, with_rows_of_run
from vrft.config.package_files import TINY_MODEL
from vrft.config.schema import Config
from vrft.config.section import Section, flat, with_values
from vrft.config.vllm_checks import vllm_faults
from vrft.config.work import WORK, Work
from vrft.errors import CANNOT_RUN, UserError, raise_all, shape_faults

S = TypeVar("S", bound=Section)


def freeze(
    composed: DictConfig,
    *,
    verb: str = "train",
    device: str = "cpu",
    overrides: Sequence[str] = (),
    is_remote: bool = False,
) -> Config:
    """The frozen config, with the section `derived` that the worker needs; `composed` is left alone.

    verb: for which it is, a key of `WORK`, which says what is checked. device: what `launch.device=auto` becomes.
    overrides: of the command line; if nothing is trained, a checkpoint's `vrft.json` and the rows of its run
    set what they do not. is_remote: True if packages and devices may be missing on this machine, whatever the verb
    does. Raises `UserError` that lists all faults.
    """
    return freeze_values(plain(composed), verb=verb, device=device, overrides=overrides, is_remote=is_remote)


def freeze_values(
    values: dict[str, Any],
    *,
    verb: str = "train",
    device: str = "cpu",
    overrides: Sequence[str] = (),
    is_remote: bool = False,
) -> Config:
    """`freeze` of what `plain` has returned."""
    config, work = checked(values, Config), WORK[verb]
    if not (work.trains and config.evaluate.train):
        from vrft.models.prompt_settings import with_prompt_settings  # numpy: not for --help

        values = with_prompt_settings(values, overrides)
        values = with_rows_of_run(values, overrides) if work.is_run else values
        config = checked(values, Config)  # vrft.json may hold anything
    if work.is_run:
        warn_of_toy_model(config, overrides)
    device = device if config.launch.device == "auto" else config.launch.device
    raise_all(faults_of(config, work, device=device, is_remote=is_remote), heading=CANNOT_RUN)
    return derive(with_values(config, {"model.path": config.model.path or str(TINY_MODEL)}), device=device)


def faults_of(config: Config, work: Work, *, device: str = "cpu", is_remote: bool = False) -> list[str]:
    """All that keeps a config, whose types and ranges are right, from being used for this work.

    device, is_remote: as in `freeze`, but device is never `auto`.
    """
    is_training = work.trains and work.takes_steps and config.evaluate.train
    examined = with_values(config, {"evaluate.train": is_training})  # the one place where checks look
    faults = list(contradictions(examined))
    faults += model_faults(
        examined.model,
        examined.deepspeed,
        is_training=is_training,
        is_remote=is_remote or not work.loads_weights,
    )
    if work.is_run:
        faults += launch_faults(examined.launch, run_dir=examined.run.dir)
        faults += pair_faults(examined)
        faults += vllm_faults(examined, device=device, is_remote=is_remote or not work.opens_engine)
    if is_training and (fault := uneven_share(config.trainer, config.memory, config.launch)):
        faults.append(fault)
    return faults


def freeze_plain(composed: DictConfig, schema: type[S]) -> S:
    """The frozen config of a verb that needs no model. Raises `UserError` that lists all faults."""
    config = checked(plain(composed), schema)
    if getattr(config, "reward", None) and "completions" not in schema.model_fields:  # which `vrft score` may lack
        faults = judging_faults(config.task, config.reward, config.trust_code)
        raise_all(list(faults), heading=CANNOT_RUN)
    return config


def checked(values: dict[str, Any], schema: type[S]) -> S:
    """The values as a model of the schema. Raises `UserError` that lists every fault."""
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
    if str(path := values.get("model", {}).get("path")).startswith("~"):
        values["model"]["path"] = os.path.expanduser(path)
    if values.get("rollout", {}).get("sharing") is True:
        values["rollout"]["sharing"] = "on"  # YAML reads a bare on as true
    return values

"""Frozen configs, as the command line makes them."""

from __future__ import annotations

import functools
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from vrft.config.freeze import freeze
from vrft.config.package_files import config_folder
from vrft.config.schema import Config


@functools.cache
def composed(*overrides: str, verb: str = "train", **options: Any) -> Config:
    """The config of a verb. options: those of `freeze`."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return freeze(compose(verb, overrides=[*overrides]), verb=verb, **options)

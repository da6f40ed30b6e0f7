"""Hydra, as the command line has it."""

from __future__ import annotations

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from vrft.cli.hydra_app import SweepFiles
from vrft.config.package_files import config_folder


@pytest.fixture(scope="module")
def hydra_reads_the_tree():
    """`hydra.compose` reads `conf/` and `sweeps/`."""
    Plugins.instance().register(SweepFiles)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield

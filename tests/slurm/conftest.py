"""A SLURM of two nodes on this machine, or the cluster that SLURM_CONF names already."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("start_slurm.sh")


@pytest.fixture(scope="session")
def cluster():
    """Environment in which SLURM's commands work; the partition `main` can be preempted by `urgent`."""
    if "SLURM_CONF" in os.environ:
        yield dict(os.environ)
        return
    if os.geteuid() != 0:
        pytest.fail("only root can start a SLURM of its own (make slurm-test); or set SLURM_CONF")
    folder = tempfile.mkdtemp(prefix="vrft-slurm-")
    try:
        started = subprocess.run([SCRIPT, folder], capture_output=True, text=True, check=False, timeout=600)
        assert started.returncode == 0, started.stderr
        yield os.environ | {"SLURM_CONF": started.stdout.split()[-1]}
    finally:
        subprocess.run([SCRIPT, folder, "stop"], check=False)
        shutil.rmtree(folder, ignore_errors=True)

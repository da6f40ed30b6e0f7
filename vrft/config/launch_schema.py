"""What `launch` may hold in a resolved config: one model a way of starting, told apart by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vrft.config.section import AboveZero, AtLeastOne, AtLeastZero, Section


class _Start(Section):
    """What every way of starting has."""

    name: str
    nproc_per_node: AtLeastOne
    threads: AtLeastOne | None  # of one worker; None leaves them as they are
    watchdog_s: AboveZero | None  # seconds of silence that end a run
    device: Literal["auto", "cpu", "cuda"]

    @property
    def n_processes(self) -> int:
        """Worker processes on all machines together."""
        return self.nproc_per_node * getattr(self, "nnodes", 1)


class LocalLaunch(_Start):
    """One worker process on this machine."""

    name: Literal["local"]


class TorchrunLaunch(_Start):
    """Several worker processes, on one machine or on several that share a file system."""

    name: Literal["torchrun"]
    nnodes: AtLeastOne  # machines
    node_rank: int  # this machine's number, from 0
    rdzv_endpoint: str | None  # HOST:PORT of the first machine, where they meet
    rdzv_id: str  # the same on all machines, another for each run at that endpoint
    rdzv_timeout_s: AtLeastOne  # how long they wait for each other


class SlurmLaunch(_Start):
    """A job of SLURM; see `conf/launch/slurm.yaml`. None leaves a setting to the cluster."""

    name: Literal["slurm"]
    nnodes: AtLeastOne
    partition: str | None
    account: str | None
    time: str | int | None
    gpus_per_node: AtLeastOne | None
    cpus_per_task: AtLeastOne | None
    mem: str | int | None
    extra: dict[str, Any]  # further options of sbatch
    setup: list[str]  # shell lines before the run
    signal_delay_s: AtLeastOne
    max_requeues: AtLeastZero
    rdzv_timeout_s: AtLeastOne
    wait: bool


Launch = Annotated[LocalLaunch | TorchrunLaunch | SlurmLaunch, Field(discriminator="name")]

"""What `launch` may hold in a resolved config: one dataclass a way of starting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class Launch:
    """threads: of one worker; None leaves them as they are. watchdog_s: seconds of silence that end a run, or None."""

    name: Literal["local", "torchrun", "slurm"]
    nproc_per_node: int
    threads: int | None
    watchdog_s: float | None
    device: Literal["auto", "cpu", "cuda"]


@dataclass
class TorchrunLaunch(Launch):
    """nnodes: machines. node_rank: this one's number, from 0. rdzv_endpoint: HOST:PORT of the first, where they meet.

    rdzv_id: the same on all, another for each run at that endpoint. rdzv_timeout_s: how long they wait for each other.
    """

    nnodes: int
    node_rank: int
    rdzv_endpoint: str | None
    rdzv_id: str
    rdzv_timeout_s: int


@dataclass
class SlurmLaunch(Launch):
    """See `conf/launch/slurm.yaml`; None leaves a setting to the cluster."""

    nnodes: int
    partition: str | None
    account: str | None
    time: str | int | None
    gpus_per_node: int | None
    cpus_per_task: int | None
    mem: str | int | None
    extra: dict
    setup: list[str]
    signal_delay_s: int
    max_requeues: int
    rdzv_timeout_s: int
    wait: bool


LAUNCHES = {"local": Launch, "torchrun": TorchrunLaunch, "slurm": SlurmLaunch}

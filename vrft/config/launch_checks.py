"""Faults in how a run is to be started: on this machine, on several, or by SLURM."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vrft.config.launch_schema import Launch, SlurmLaunch, TorchrunLaunch
from vrft.errors import suggestion

# Options of sbatch. Left out: those that run a command, write elsewhere, or are set by vrft itself.
_EXTRA_WORDS = (
    "begin comment constraint contiguous core-spec cpus-per-gpu deadline dependency "
    "distribution exclude exclusive gpu-bind gpu-freq gpus-per-task gres gres-flags hint licenses mail-type mail-user "
    "mem-bind mem-per-cpu mem-per-gpu network nice nodelist oversubscribe power prefer priority qos reservation "
    "sockets-per-node spread-job switches threads-per-core tmp use-min-nodes wckey"
)
_EXTRA = frozenset(_EXTRA_WORDS.split())
_TIME = re.compile(r"(\d+-)?\d+:\d\d(:\d\d)?")
_MEMORY = re.compile(r"\d+[KMGT]?")


def launch_faults(launch: Launch, *, run_dir: str) -> Iterator[str]:
    """Yield what is wrong with the values of `launch`, whose types and ranges are right."""
    if launch.name == "local" and launch.nproc_per_node > 1:
        yield f"launch=local starts one process; for launch.nproc_per_node={launch.nproc_per_node} choose torchrun"
    if launch.name == "torchrun":
        yield from _meeting_faults(launch)
    if launch.name == "slurm":
        yield from _job_faults(launch, run_dir)


def _meeting_faults(launch: TorchrunLaunch) -> Iterator[str]:
    """Yield what keeps several machines from meeting."""
    nnodes, rank, endpoint = launch.nnodes, launch.node_rank, launch.rdzv_endpoint
    if not 0 <= rank < nnodes:
        yield f"launch.node_rank is {rank}; of launch.nnodes={nnodes} machines it is one from 0 to {nnodes - 1}"
    if nnodes > 1 and not re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", endpoint or ""):
        yield (
            f"launch.rdzv_endpoint is {endpoint!r}; launch.nnodes={nnodes} machines meet at HOST:PORT of machine 0, as "
            "in launch.rdzv_endpoint=node1:29500"
        )
    if not re.fullmatch(r"[\w.-]+", launch.rdzv_id):
        yield f"launch.rdzv_id is {launch.rdzv_id!r}; a word of letters, digits, dots and dashes is needed"


def _job_faults(launch: SlurmLaunch, run_dir: str) -> Iterator[str]:
    """Yield what sbatch would refuse, and what would add lines to its script."""
    for key in ("partition", "account"):
        value = getattr(launch, key)
        if value is not None and not re.fullmatch(r"[\w.,@+-]+", value):
            yield f"launch.{key} is {value!r}; a name as the cluster knows it is needed"
    if launch.time is not None and not _TIME.fullmatch(str(launch.time)):
        yield (
            f"launch.time is {launch.time!r}; HH:MM:SS or D-HH:MM:SS is needed, in a file within quotes, as in "
            "'12:00:00'"
        )
    if launch.mem is not None and not _MEMORY.fullmatch(str(launch.mem)):
        yield f"launch.mem is {launch.mem!r}; a number with K, M, G or T is needed, as in 64G"
    for key, value in launch.extra.items():
        name = str(key).replace("_", "-")
        if name not in _EXTRA:
            yield f"launch.extra has {key!r}; {suggestion(name, _EXTRA)}known: {', '.join(sorted(_EXTRA))}"
        elif isinstance(value, (dict, list)) or value is None or not re.fullmatch(r"[ -~]+", str(value)):
            yield f"launch.extra.{key} is {value!r}; a number, true, or one line of plain letters is needed"
    for line in launch.setup:
        if "\n" in line or "\r" in line:
            yield f"launch.setup has {line!r}; one shell line an entry is needed"
    if re.search(r"[%\x00-\x1f]", run_dir):
        yield f"run.dir is {run_dir!r}; without % and line breaks SLURM can write its log there"

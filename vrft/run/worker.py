"""The worker: reads a frozen run directory, evaluates, trains, evaluates again, and writes `result.json` last.

Started by `vrft.run.processes` as `python -m vrft.run.worker RUN_DIR [NODE]`, once or under torchrun; NODE is the
machine's number where there are several. It knows plain values only, no Hydra.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers
from accelerate.utils import gather_object, set_seed

from vrft.errors import SIGNALLED, ExitCode, UserError, disk_errors_explained, first_line, phase_of
from vrft.files import open_to_append, read_written, write_text_atomically
from vrft.models.prompt_settings import read_prompt_settings, wording_drift
from vrft.report.run_forms import Provenance
from vrft.report.wandb import tracked
from vrft.run import directory, health
from vrft.run.context import RunContext, open_experiment
from vrft.run.health import Status
from vrft.run.out_of_memory import is_out_of_memory
from vrft.run.resume import read_config
from vrft.run.stages import Stages, checkpoints_to_judge, is_non_finite
from vrft.run.training import Interrupted, start_of
from vrft.run.vllm_checks import check_vllm
from vrft.terminal import careful_terminal

_LATE_S = 60  # how much later a network's file system may show on one machine what another has written


def run(run_dir: Path, status: Status) -> dict | None:
    """All parts that the frozen config asks for; `result.json` is written at the very end.

    Returns the alarm that ended the run: after it nothing is judged.
    """
    context = open_experiment(run_dir, status)
    config = context.config
    if "wandb" not in config.logging.report_to or not context.processes.is_main_process:
        return _run_parts(context)
    job_type = config.trainer.name if config.evaluate.train else "evaluate"
    with tracked(run_dir, config.logging, config.plain(), job_type=job_type):
        return _run_parts(context)


def _run_parts(context: RunContext) -> dict | None:
    wanted = context.config.evaluate
    set_seed(context.config.run.seed)
    start = start_of(context)
    if not wanted.train:
        _warn_of_drift(context)
    check_vllm(context)
    stages = Stages(context)
    results, history, stopped_by = {}, [], None
    if wanted.before:
        results["before"] = stages.base()
    if wanted.train:
        history, stopped_by = stages.train(start)
    after_is, names = checkpoints_to_judge(wanted, stopped_by)
    found = {name: stages.judge(name) for name in sorted(names, key=lambda name: name != "last")}  # in memory by now
    results |= {name: found[name] for name in names}
    peak_gib = max(gather_object([_peak_gib(context.config.derived.device)]))
    if context.processes.is_main_process:
        _write_result(context, stages.others, results, history, after_is=after_is, peak_gib=peak_gib)
    return stopped_by if is_non_finite(stopped_by) and stopped_by["action"] == "stop" else None


def _warn_of_drift(context: RunContext) -> None:
    """Print a warning for each text in which the model is asked otherwise than it was trained."""
    card = read_prompt_settings(context.config.model.path)
    for difference in wording_drift(card, task=context.task, prompt_of=context.prompt_of):
        if context.processes.is_main_process:
            print(f"warning: {difference}", file=sys.stderr)


def _peak_gib(device: str) -> float:
    """The most memory that this process has held: allocated on the GPU, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def _write_result(
    experiment: RunContext,
    others: list[RunContext],
    results: dict[str, dict],
    history: list[dict],
    *,
    after_is: str,
    peak_gib: float,
) -> None:
    """`before` and `after` on the split `test`; every evaluation on every test set under `test_sets`, and on other
    tasks under `others`, each with the metrics by which it is compared."""
    provenance = read_written(experiment.run_dir / "provenance.json", Provenance)
    after = results.get(after_is)
    result = {
        "before": results.get("before", {}).get("test"),
        "after": after and after["test"],
        "after_is": after_is if after else None,
        "primary_metrics": experiment.primary_metrics,
        "reward_terms": experiment.judge.columns,
        "test_sets": {
            split: {name: by_split[split] for name, by_split in results.items()} for split in experiment.test_splits
        },
        "others": {
            one.other: {
                "protocol": one.protocol,
                "primary_metrics": one.primary_metrics,
                "evaluations": {name: by_split[f"others/{one.other}"] for name, by_split in results.items()},
            }
            for one in others
        },
        "validation": history,
        "peak_memory_gib": round(peak_gib, 3),
        "n_rows": {split: len(rows) for split, rows in experiment.rows.items()},
        "durations_s": experiment.durations_s,
        **{key: provenance.get(key) for key in ("config_hash", "data_hash", "commit", "seed")},
    }
    write_text_atomically(experiment.run_dir / "result.json", json.dumps(result, indent=2) + "\n")


@careful_terminal
def main() -> int:
    """Entry point of the worker; exit code 2 for a user's mistake."""
    run_dir, node = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    status = Status()
    status.listen()
    for _ in range(_LATE_S * 10 * bool(node)):  # of several machines another has made the run directory
        if (run_dir / "config.yaml").is_file():
            break
        time.sleep(0.1)
    rank = int(os.environ.get("RANK", "0"))
    lock = open_to_append(run_dir / directory.LOCK_FILE)  # open to the end of the process
    with contextlib.suppress(OSError):  # a file system without locks
        directory.join(lock)
    status.begin(run_dir, rank, node)
    try:
        with disk_errors_explained(then=f"resume with run.dir={run_dir} run.resume=true"):
            _write_stacks_on_request(run_dir, rank)
            set_environment(run_dir)
    except UserError as error:  # config.yaml is of another version, or edited
        print(f"vrft: {error}", file=sys.stderr)
        return ExitCode.USER_ERROR
    silence_libraries()
    code = _outcome(run_dir, status, is_main=rank == 0)
    status.say(state="finished", code=code)
    return code


def _outcome(run_dir: Path, status: Status, *, is_main: bool) -> int:
    """Run, and turn what a user can act on into a message and an exit code."""
    try:
        with disk_errors_explained(then=f"resume with run.dir={run_dir} run.resume=true"):
            stopped_by = run(run_dir, status)
    except Interrupted:
        return SIGNALLED + (status.received() or signal.SIGTERM)  # it came to another process
    except UserError as error:
        if is_main:  # under torchrun every process has the same to say, or this one tells the parent
            print(f"vrft: {error}", file=sys.stderr)
        status.say(error=str(error))
        return ExitCode.USER_ERROR
    except Exception as error:
        if is_out_of_memory(error):
            status.say(oom=phase_of(error) or "loading", error=first_line(error))
            return ExitCode.OUT_OF_MEMORY
        status.say(state="failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if stopped_by and is_main:
        print(
            f"vrft: {stopped_by['message']}; the optimizer has not stepped on it. Lower trainer.learning_rate, or look "
            "at these rows; alarms.non_finite=stop_keep_best goes on to judge the best checkpoint",
            file=sys.stderr,
        )
    return ExitCode.STOPPED_BY_ALARM if stopped_by else 0


def _write_stacks_on_request(run_dir: Path, rank: int) -> None:
    """SIGUSR1 makes every thread's stack appear in `health/stack_RANK.txt`, also while Python is stuck in C."""
    file = (run_dir / health.FOLDER / f"stack_{rank}.txt").open("w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def set_environment(run_dir: Path) -> None:
    """What libraries read from the environment, set before they look."""
    config = read_config(run_dir)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # also where a library asks for a whole pickle, as DeepSpeed does
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")
    if config.derived.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"


def silence_libraries() -> None:
    """Leave the terminal to vrft's own bars; warnings about renames inside transformers and trl are not for its
    users."""
    import datasets

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)


if __name__ == "__main__":
    sys.exit(main())

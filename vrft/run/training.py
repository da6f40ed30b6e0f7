"""The worker's training: from where it starts or resumes to its last checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import broadcast_object_list

from vrft.config.trl_arguments import trainer_arguments, vllm_length
from vrft.errors import UserError, phase
from vrft.files import read_written, remove
from vrft.models.adapters import check_targets, lora_settings, read_adapter
from vrft.models.families import FAMILIES
from vrft.models.load import freeze_parts, load_model
from vrft.models.prompt_settings import make_prompt_settings
from vrft.report.run_forms import Provenance
from vrft.report.wandb import RolloutPictures, picture
from vrft.run.context import RunContext
from vrft.run.evaluation import evaluate_splits
from vrft.run.rejection_sampling import rows_with_own_completions
from vrft.tasks.rows import Row

ALARMS = "alarms.jsonl"
NON_FINITE = "non_finite"


class Interrupted(Exception):
    """A signal has ended the training; its state is saved."""


@dataclass(frozen=True)
class Start:
    """Where training starts: a trainer's checkpoint to resume from, or None, and what was logged until then.

    best: the validation metric of the checkpoint in `checkpoints/best`, or minus infinity.
    """

    checkpoint: Path | None = None
    log: Sequence[dict] = ()
    alarms: Sequence[dict] = ()
    best: float = -math.inf


def train(experiment: RunContext, model, start: Start) -> tuple[list[dict], dict | None]:
    """Train `model` in place; leaves `checkpoints/last` and, with validation, `checkpoints/best`.

    start: the checkpoint whose weights `model` holds; steps, optimizer and logs resume from it. Returns the validation
    history, and the alarm that ended the training early or None: after the rule `non_finite` there is no
    `checkpoints/last`. Raises `Interrupted` once a checkpoint is complete.
    """
    from vrft.train.alarms import Alarms, agreed_maximum
    from vrft.train.best_and_last import previous

    config, folder = experiment.config, experiment.run_dir / "checkpoints"
    row, metric = experiment.rows["train"][0], experiment.primary_metrics[0]
    provenance = read_written(experiment.run_dir / "provenance.json", Provenance)
    card = make_prompt_settings(
        config.prompt_settings,
        base=config.model.path,
        base_hash=provenance.get("model_hash"),
        trainer=config.trainer.name,
        task=experiment.task,
        row=row,
        frame=experiment.frame_for_row(row),
        prompt_of=experiment.prompt_of,
    )
    alarms = Alarms(
        config.alarms.plain(),
        experiment.run_dir / ALARMS,
        validation=metric,
        known=start.log,
        known_alarms=start.alarms,
    )
    validation = _validation(experiment, start, card) if config.trainer.eval_steps else None
    trainer = _make_trainer(
        experiment,
        model,
        trainer_arguments(config, folder),
        callbacks=_callbacks(experiment, alarms),
        validation=validation,
        stops_on_non_finite=config.alarms.non_finite != "off",
        on_batch=lambda step, rows: experiment.status.say(doing="train", step=step, rows=rows),
    )
    with experiment.status.patience():
        stopped_by = _run_trainer(experiment, trainer, alarms, start, card)
    if agreed_maximum(experiment.status.received() is not None, trainer.args):
        raise Interrupted
    # After NaN a run may resume from a checkpoint older than `best`, and roll `best` back.
    is_non_finite = stopped_by is not None and stopped_by["rule"] == NON_FINITE
    if experiment.processes.is_main_process and not is_non_finite:
        for name in ("best", "last"):
            remove(previous(folder / name))
    experiment.processes.wait_for_everyone()
    _let_go(trainer)
    return validation.history if validation else [], stopped_by


def _run_trainer(experiment: RunContext, trainer, alarms, start: Start, card: dict) -> dict | None:
    """Train to the end and save `checkpoints/last`; returns the alarm that ended the training early, or None."""
    from vrft.train.alarms import report
    from vrft.train.best_and_last import save_checkpoint
    from vrft.train.non_finite import NonFiniteError

    try:
        with phase("step"):
            trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
        if not trainer.state.global_step:  # the trainers end in silence where rows fill no batch
            raise UserError(
                f"the training took no step: {len(experiment.rows['train'])} rows fill no batch; give more rows, or "
                f"lower trainer.prompts_per_step={experiment.config.trainer.prompts_per_step}"
            )
        (stopped_by,) = broadcast_object_list([alarms.stopped_by])
        last = experiment.run_dir / "checkpoints" / "last"
        save_checkpoint(trainer, experiment.processor, last, card | {"step": trainer.state.global_step})
    except NonFiniteError as error:
        action, step = experiment.config.alarms.non_finite, trainer.state.global_step + 1
        stopped_by = {"step": step, "rule": NON_FINITE, "action": action, "message": str(error)}
        if experiment.processes.is_main_process:
            report(stopped_by, experiment.run_dir / ALARMS)
    return stopped_by


def _callbacks(experiment: RunContext, alarms) -> list:
    """The trainer's callbacks but for the validation."""
    from vrft.train.callbacks import MetricsFile, ProgressBar, StopOnSignal

    shown = {"reward": "reward", "loss": "loss", f"validation/{experiment.primary_metrics[0]}": "validation"}
    metrics = MetricsFile(experiment.run_dir / "metrics.jsonl")
    return [
        StopOnSignal(experiment.status.received),
        metrics,
        ProgressBar(shown),
        alarms,
        *_rollout_pictures(experiment),
    ]


def _let_go(trainer) -> None:
    """Undo what DeepSpeed has hooked into the weights, by which they would live on; C++ holds these hooks."""
    reference = getattr(trainer, "ref_model", None)
    if hasattr(reference, "destroy"):  # an engine, of ZeRO-3
        reference.destroy()
    trainer.accelerator.free_memory()


def _rollout_pictures(experiment: RunContext) -> list[RolloutPictures]:
    """The callback that sends pictures of completions to W&B; none without W&B, or where none are sampled."""
    logging = experiment.config.logging
    is_wanted = "wandb" in logging.report_to and logging.pictures_every and logging.pictures
    if not is_wanted or experiment.config.trainer.name != "grpo":
        return []

    def draw(row: Row, case: dict):
        frame = experiment.frame_for_row(row)
        return picture(row, case, task=experiment.task, frame=frame, root=experiment.data_dir)

    rollouts, every = experiment.run_dir / "rollouts", logging.pictures_every
    return [RolloutPictures(experiment.rows["train"], rollouts, draw, n=logging.pictures, every=every)]


def _validation(experiment: RunContext, start: Start, card: dict):
    """The validation callback, with the history and the best metric of the steps before a resume."""
    from vrft.train.callbacks import Validation

    metric, folder = experiment.primary_metrics[0], experiment.run_dir / "checkpoints" / "best"
    return Validation(
        lambda policy, synced_gpus: evaluate_splits(
            experiment, policy, ["validation"], name=None, synced_gpus=synced_gpus
        )["validation"][experiment.protocol],
        metric=metric,
        eval_steps=experiment.config.trainer.eval_steps,
        processor=experiment.processor,
        folder=folder,
        card=card,
        history=[
            {"step": entry["step"], "value": entry[f"validation/{metric}"], "n": entry["validation/n"]}
            for entry in start.log
            if f"validation/{metric}" in entry
        ],
        best=start.best,
    )


@phase("loading")
def _make_trainer(experiment: RunContext, model, arguments: dict, **resumable):
    """The trainer of `config.trainer`. resumable: callbacks, and arguments of `vrft.train.trl_overrides.Resumable`."""
    from peft import LoraConfig
    from transformers import PrinterCallback

    from vrft.train.grpo import grpo_trainer
    from vrft.train.sft import sft_trainer

    config = experiment.config
    if config.deepspeed.config and config.derived.device == "cpu":
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")  # accelerate skips its DeepSpeed branch on a CPU
    settings, family = config.model, FAMILIES[config.model.family]
    freeze_parts(model, settings.freeze, family)
    peft = settings.peft and lora_settings(settings.peft, family, frozen=settings.freeze, revision=settings.revision)
    if peft:
        check_targets(model, peft)
    is_own = config.trainer.sft_thought == "own"
    shared = {
        "rows": rows_with_own_completions(experiment, model) if is_own else experiment.training_rows,
        "root": experiment.data_dir,
        "task": experiment.task,
        "frame_for_row": experiment.frame_for_row,
        "arguments": arguments | {"trust_remote_code": settings.trust_remote_code},
        "peft_config": LoraConfig(**peft) if peft else None,
        **resumable,
    }
    if config.trainer.name == "sft":
        trainer = sft_trainer(model, experiment.processor, thought=config.trainer.sft_thought, **shared)
    else:
        trainer = grpo_trainer(
            model,
            experiment.processor,
            judge=experiment.judge,
            rollouts=experiment.run_dir / "rollouts",
            sharing=config.rollout.sharing,
            # An adapter's folder is loaded with its base, and so is the reference.
            revision=(read_adapter(Path(settings.path)) or {"revision": settings.revision}).get("revision"),
            **shared,
        )
    if settings.quantization:
        for parameter in trainer.model.parameters():  # TRL has them in bfloat16, where small steps round to nothing
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    return trainer


def start_of(experiment: RunContext) -> Start:
    """Find where training starts, and bring the files of the run directory back to there.

    The main process reads the disk and tells the others: on a network file system another machine may still see the
    files as they were, and processes that disagree on the best checkpoint wait for each other forever.
    """
    from vrft.train.best_and_last import rewind, rewind_rollouts
    from vrft.train.checkpoints import newest_checkpoint, step_of

    found = [Start()]
    if experiment.config.evaluate.train and experiment.processes.is_main_process:
        folder = experiment.run_dir / "checkpoints"
        for incomplete in folder.glob("*.partial"):
            remove(incomplete)
        newest = newest_checkpoint(folder) if experiment.config.run.resume else None
        step = step_of(newest) if newest else 0
        rewind_rollouts(experiment.run_dir / "rollouts", step)
        log, alarms = (rewind(experiment.run_dir / name, step) for name in ("metrics.jsonl", ALARMS))
        found = [Start(newest, log, alarms, best=_settled_best(experiment, folder / "best", log, step))]
        if experiment.config.run.resume:
            print(
                f"resuming from {newest}" if newest else "no complete checkpoint: training starts at step 0",
                file=sys.stderr,
            )
    broadcast_object_list(found)
    return found[0]


def _settled_best(experiment: RunContext, folder: Path, log: Sequence[dict], step: int) -> float:
    """The best validation metric that was logged; its checkpoint is then in `folder`, or a warning says that it is not.

    The log decides, not the folder: else a later and worse checkpoint would take the name of a best one that is gone.
    step: where training resumes, or 0. Raises `UserError` where the log lacks the validations of a run that takes them.
    """
    from vrft.train.best_and_last import settle_best

    key, file = f"validation/{experiment.primary_metrics[0]}", experiment.run_dir / "metrics.jsonl"
    taken = [entry for entry in log if key in entry]
    if odd := next((one for one in taken if not isinstance(one[key], int | float) or "validation/n" not in one), None):
        raise UserError(f"{file}: the line of step {odd['step']} has no {key} with its n; mend it to resume")
    if step and experiment.config.trainer.eval_steps and not taken:
        raise UserError(
            f"{file} has no {key} up to step {step}, so the best checkpoint is unknown; bring the file back, or "
            f"delete {folder.parent} to start again at step 0"
        )
    best = max(taken, key=lambda entry: entry[key], default=None)
    if fault := settle_best(folder, best and best["step"]):
        print(
            f"warning: the best checkpoint so far, of step {best['step']} ({key} {best[key]:.3f}), is lost ({fault}). "
            f"A later one takes its place only if it is better; without one {folder} cannot be judged. To start again "
            f"at step 0, delete {folder.parent}",
            file=sys.stderr,
        )
    return best[key] if best else -math.inf


@phase("loading")
def load_policy(experiment: RunContext, path: str):
    """The model of a folder or hub name, as `config.model` has it, on this process's device."""
    settings = experiment.config.model
    return load_model(
        path,
        family=FAMILIES[settings.family],
        dtype=settings.dtype,
        attention=settings.attention,
        device=experiment.processes.device,
        revision=settings.revision if path == settings.path else None,
        trust_remote_code=settings.trust_remote_code,
        quantization=settings.quantization,
    )


@phase("loading")
def open_engine(experiment: RunContext, path: str):
    """The checkpoint of a folder or hub name in vLLM, to be evaluated."""
    from vrft.models.vllm import VLLMEngine

    settings, config = experiment.config.model, experiment.config
    return VLLMEngine(
        path,
        dtype=settings.dtype,
        image_token_id=experiment.processor.image_token_id,
        max_model_len=vllm_length(config.rollout, config.memory),
        gpu_memory_utilization=experiment.config.rollout.vllm.gpu_memory_utilization,
        revision=settings.revision if path == settings.path else None,
        trust_remote_code=settings.trust_remote_code,
    )

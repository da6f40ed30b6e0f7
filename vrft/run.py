"""The worker: reads a frozen run directory, evaluates, trains, evaluates again, and writes `result.json` last.

Started by `vrft.launching` as `python -m vrft.run RUN_DIR`, once or under torchrun. It knows plain values only, no
Hydra.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from vrft.checkpoint_card import make_card, read_card, wording_drift
from vrft.errors import UserError
from vrft.evaluations import evaluate_splits, known_evaluation
from vrft.models.families import FAMILIES
from vrft.models.load import freeze_parts, load_model
from vrft.rows import write_text_atomically
from vrft.run_directory import Experiment, open_experiment
from vrft.surroundings import exit_on_interrupt, set_environment, silence_libraries


def train(experiment: Experiment, model, resumed_from: Path | None) -> list[dict]:
    """Train `model` in place and return the validation history; leaves `checkpoints/last` and, with validation,
    `checkpoints/best`.

    resumed_from: a trainer's checkpoint whose weights `model` holds; steps, optimizer and logs go on from there.
    """
    from vrft.train.arguments import trainer_arguments
    from vrft.train.callbacks import MetricsFile, ProgressBar, Validation
    from vrft.train.checkpoints import rewind_logs, save_checkpoint, step_of

    config, folder = experiment.config, experiment.run_dir / "checkpoints"
    row = experiment.rows["train"][0]
    card = make_card(
        config, task=experiment.task, row=row, frame=experiment.frame_for_row(row), prompt_of=experiment.prompt_of
    )
    metric = experiment.primary_metrics[0]
    with experiment.processes.main_process_first():
        known = rewind_logs(experiment.run_dir, step_of(resumed_from) if resumed_from else 0)
    history = [
        {"step": entry["step"], "value": entry[f"validation/{metric}"], "n": entry["validation/n"]}
        for entry in known
        if f"validation/{metric}" in entry
    ]
    shown = {"reward": "reward", "loss": "loss", f"validation/{metric}": "validation"}
    callbacks = [MetricsFile(experiment.run_dir / "metrics.jsonl"), ProgressBar(shown)]
    if config["trainer"]["eval_steps"]:
        validation = Validation(
            lambda policy: evaluate_splits(experiment, policy, ["validation"], name=None)["validation"][
                experiment.protocol
            ],
            metric=metric,
            eval_steps=config["trainer"]["eval_steps"],
            processor=experiment.processor,
            folder=folder / "best",
            card=card,
            history=history,
        )
        callbacks.append(validation)
    trainer = _make_trainer(experiment, model, trainer_arguments(config, folder), callbacks)
    for callback in callbacks:
        callback.trainer = trainer
    trainer.train(resume_from_checkpoint=str(resumed_from) if resumed_from else None)
    save_checkpoint(trainer, experiment.processor, folder / "last", card | {"step": trainer.state.global_step})
    experiment.processes.wait_for_everyone()
    return history


def _make_trainer(experiment: Experiment, model, arguments: dict, callbacks: list):
    from peft import LoraConfig
    from transformers import PrinterCallback

    from vrft.train.grpo import grpo_trainer
    from vrft.train.sft import sft_trainer

    config = experiment.config
    if config["deepspeed"]["config"] and config["derived"]["device"] == "cpu":
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")  # accelerate skips its DeepSpeed branch on a CPU
    freeze_parts(model, config["model"]["freeze"], FAMILIES[config["model"]["family"]])
    shared = {
        "rows": experiment.training_rows,
        "root": experiment.data_dir,
        "task": experiment.task,
        "frame_for_row": experiment.frame_for_row,
        "arguments": arguments,
        "peft_config": LoraConfig(**config["model"]["peft"]) if config["model"]["peft"] else None,
        "callbacks": callbacks,
    }
    if config["trainer"]["name"] == "sft":
        trainer = sft_trainer(model, experiment.processor, thought=config["trainer"]["sft_thought"], **shared)
    else:
        trainer = grpo_trainer(
            model,
            experiment.processor,
            judge=experiment.judge,
            rollouts=experiment.run_dir / "rollouts",
            sharing=config["rollout"].get("sharing"),
            **shared,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def run(run_dir: Path) -> None:
    """All parts that the frozen config asks for; `result.json` is written at the very end."""
    experiment = open_experiment(run_dir)
    config, wanted = experiment.config, experiment.config["evaluate"]
    set_seed(config["run"]["seed"])
    resumed_from = _resume_point(experiment)
    drift = wording_drift(read_card(config["model"]["path"]), task=experiment.task, prompt_of=experiment.prompt_of)
    if experiment.processes.is_main_process and not wanted["train"]:
        for difference in drift:
            print(f"warning: {difference}", file=sys.stderr)
    model = _load(experiment, config["model"]["path"])
    results: dict[str, dict] = {}
    history: list[dict] = []
    if wanted["before"]:
        with experiment.timed("evaluate_before"):
            results["before"] = known_evaluation(experiment, "before") or evaluate_splits(
                experiment, model, experiment.test_splits, name="before"
            )
    if wanted["train"]:
        if resumed_from and not config["model"]["peft"]:
            # The trainer itself would keep the base weights in silence: saved and live parameter names differ.
            model = _load(experiment, str(resumed_from))
            model.config._name_or_path = config["model"]["path"]  # from where TRL loads the reference model
        with experiment.timed("train"):
            history = train(experiment, model, resumed_from)
        unset_hf_deepspeed_config()  # or a checkpoint would be loaded in parts, one a process
    names = list(dict.fromkeys([wanted["checkpoint"], *wanted["also"]])) if wanted["train"] and wanted["after"] else []
    for name in names:
        is_sharded = ((config["deepspeed"]["config"] or {}).get("zero_optimization") or {}).get("stage") == 3
        is_whole = name == "last" and not is_sharded
        policy = model if is_whole else _load(experiment, str(run_dir / "checkpoints" / name))
        with experiment.timed(f"evaluate_{name}"):
            results[name] = evaluate_splits(experiment, policy, experiment.test_splits, name=name)
    if experiment.processes.is_main_process:
        _write_result(experiment, results, history)


def _resume_point(experiment: Experiment) -> Path | None:
    from vrft.train.checkpoints import newest_checkpoint

    is_resuming = experiment.config["run"]["resume"] and experiment.config["evaluate"]["train"]
    return newest_checkpoint(experiment.run_dir / "checkpoints") if is_resuming else None


def _write_result(experiment: Experiment, results: dict[str, dict], history: list[dict]) -> None:
    """`before` and `after` on the split `test`; every evaluation on every test set under `test_sets`."""
    config = experiment.config
    provenance = json.loads((experiment.run_dir / "provenance.json").read_text(encoding="utf-8"))
    after = results.get(config["evaluate"]["checkpoint"])
    result = {
        "before": results.get("before", {}).get("test"),
        "after": after and after["test"],
        "after_is": config["evaluate"]["checkpoint"] if after else None,
        "primary_metrics": experiment.primary_metrics,
        "reward_terms": experiment.judge.columns,
        "test_sets": {
            split: {name: by_split[split] for name, by_split in results.items()} for split in experiment.test_splits
        },
        "validation": history,
        "n_rows": {split: len(rows) for split, rows in experiment.rows.items()},
        "durations_s": experiment.durations_s,
        **{key: provenance.get(key) for key in ("config_hash", "data_hash", "commit", "seed")},
    }
    write_text_atomically(experiment.run_dir / "result.json", json.dumps(result, indent=2) + "\n")


def _load(experiment: Experiment, path: str):
    settings = experiment.config["model"]
    return load_model(
        path,
        family=FAMILIES[settings["family"]],
        dtype=settings["dtype"],
        attention=settings["attention"],
        device=experiment.processes.device,
        revision=settings["revision"] if path == settings["path"] else None,
        trust_remote_code=settings["trust_remote_code"],
    )


def main() -> int:
    """Entry point of the worker; exit code 2 for a user's mistake."""
    run_dir = Path(sys.argv[1])
    exit_on_interrupt()
    set_environment(run_dir)
    silence_libraries()
    try:
        run(run_dir)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun every process has the same to say
            print(f"vrft: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        print(
            f"vrft: the disk of run.dir={run_dir} is full; free some space and go on with run.resume=true",
            file=sys.stderr,
        )
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Evaluations within a run: completions generated, kept and judged, on every test set."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object

from vrft.config.schema import Protocol
from vrft.errors import UserError, phase
from vrft.evaluate.completions import Sampling, generate_completions
from vrft.evaluate.partial_completions import KeptBatches, OtherEvaluationError
from vrft.evaluate.score import score_completions
from vrft.files import manifest_hash, read_rows, read_written, remove, write_text_atomically
from vrft.report.run_forms import Metrics, Provenance, ScoredForm
from vrft.run.context import RunContext
from vrft.run.resume import lasting_hash
from vrft.tasks.rows import Row


@phase("evaluation")
def evaluate_splits(
    experiment: RunContext, model, splits: list[str], *, name: str | None, synced_gpus: bool = False
) -> dict[str, dict]:
    """`{split: {protocol: metrics}}`; with a name, completions and scores go to `evaluations/NAME/SPLIT/`.

    Every process generates its share of the batches; all of them end with the same metrics. synced_gpus: True where the
    model's weights lie apart on them (see `generate_completions`).
    """
    config, processes = experiment.config, experiment.processes
    protocol = config.protocol.plain()
    if not name:  # of a validation nobody reads intervals, and boxes are ranked by the stated confidence
        protocol |= {"n_resamples": 1, "score_source": "written"}
    results = {}
    for split in splits:
        folder = experiment.evaluation_dir / (name or "validation") / split
        completions = _completions(experiment, model, split, folder=folder, name=name, synced_gpus=synced_gpus)
        scored, metrics = score_completions(
            experiment.rows[split],
            completions,
            task=experiment.task,
            frame_for_row=experiment.frame_for_row,
            protocol=protocol,
            judge=experiment.judge,
        )
        results[split] = {experiment.protocol: metrics}
        if name and processes.is_main_process:
            _write_lines(folder / "scores.jsonl", scored)
            write_text_atomically(folder / "metrics.json", json.dumps(results[split], indent=2) + "\n")
    return results


@phase("evaluation")
def completions_of(
    experiment: RunContext,
    model,
    rows: Sequence[Row],
    *,
    progress: str | None,
    kept: KeptBatches | None = None,
    synced_gpus: bool = False,
    **sampling,
) -> list:
    """The completions of the rows by all processes together, in the order of the rows and of their samples.

    progress: the label of the main process's progress bar; None: no bar. kept, synced_gpus: see
    `generate_completions`. sampling: fields of `Sampling` beside those that `memory` sets.
    """
    memory, processes = experiment.config.memory, experiment.processes
    shown = progress if processes.is_main_process else None
    share = generate_completions(
        rows,
        root=experiment.data_dir,
        task=experiment.task,
        frame_for_row=experiment.frame_for_row,
        model=model,
        processor=experiment.processor,
        sampling=Sampling(memory.max_completion_length, memory.evaluation_batch_size, **sampling),
        rank=processes.process_index,
        world_size=processes.num_processes,
        progress=shown,
        kept=kept,
        synced_gpus=synced_gpus,
        on_batch=lambda row_ids: experiment.status.say(doing=shown or "evaluate", rows=row_ids),
    )
    order = {row["row_id"]: index for index, row in enumerate(rows)}
    return sorted(gather_object(share), key=lambda one: (order[one["row_id"]], one["sample"]))


def _completions(
    experiment: RunContext, model, split: str, *, folder: Path, name: str | None, synced_gpus: bool
) -> list[dict]:
    """The completions of each row of the split, in their order. With a name they are kept batch by batch while they are
    made, and stand in `folder/completions.jsonl` at the end."""
    config, processes, rows = experiment.config, experiment.processes, experiment.rows[split]
    kept = _kept_batches(experiment, folder / "batches", name) if name else None
    processes.wait_for_everyone()  # before anyone adds to what all have read
    doing = _doing(experiment, name, split) if name else None
    sampling = _sampling(config.protocol, config.run.seed) if name else {}
    completions = completions_of(
        experiment, model, rows, progress=doing, kept=kept, synced_gpus=synced_gpus, **sampling
    )
    if kept and processes.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        _write_lines(folder / "completions.jsonl", completions)
        kept.remove()
    return completions


def _doing(experiment: RunContext, name: str | None, split: str) -> str:
    return f"{name}: {split if experiment.other is None else experiment.other}"


def _sampling(protocol: Protocol, seed: int) -> dict:
    """What `protocol.score_source` needs beside the greedy completions."""
    if protocol.score_source == "agreement":
        return {"n_samples": protocol.n_samples, "temperature": protocol.temperature, "seed": seed}
    return {"with_logprobs": protocol.score_source == "token_probability"}


def _kept_batches(experiment: RunContext, folder: Path, name: str) -> KeptBatches:
    """What a killed evaluation of that name has kept; of a checkpoint that training has changed since, nothing."""
    record = read_written(experiment.run_dir / "provenance.json", Provenance)
    weights = record.get("model_hash")
    if name != "before":  # on a shared disk the others may not see yet what the main process has written
        checkpoint = experiment.run_dir / "checkpoints" / name
        (weights,) = broadcast_object_list(
            [manifest_hash(checkpoint) if experiment.processes.is_main_process else None]
        )
    n_rows = experiment.config.memory.evaluation_batch_size  # a run may resume with smaller batches
    fingerprint = {
        "config": lasting_hash(experiment.config.plain()),
        "data": record.get("data_hash"),
        "model": weights,
    }
    fingerprint |= {"evaluation_batch_size": n_rows}
    try:
        return KeptBatches(folder, fingerprint)
    except OtherEvaluationError as error:
        if name == "before" and error.names != ["evaluation_batch_size"]:
            raise
    experiment.processes.wait_for_everyone()
    if experiment.processes.is_main_process:
        remove(folder)
    experiment.processes.wait_for_everyone()
    return KeptBatches(folder, fingerprint)


def known_evaluation(experiment: RunContext, name: str) -> dict[str, dict] | None:
    """An evaluation that a run which is being resumed had finished, as `evaluate_splits` returned it.

    None if there is none, or it is damaged: then it is made again, as the report needs it whole.
    """
    folders = {split: experiment.evaluation_dir / name / split for split in experiment.test_splits}
    if not experiment.config.run.resume or not all((one / "metrics.json").is_file() for one in folders.values()):
        return None
    try:
        for folder in folders.values():
            if (folder / "scores.jsonl").is_file():
                read_rows(folder / "scores.jsonl", ScoredForm)
        return {split: read_written(folder / "metrics.json", Metrics) for split, folder in folders.items()}
    except UserError as error:
        if experiment.processes.is_main_process:
            print(f"warning: {error}\nwarning: so the evaluation {name} is made again", file=sys.stderr)
        return None


def _write_lines(path: Path, entries: list[dict]) -> None:
    write_text_atomically(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))

"""The files of a finished run, as the report reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from vrft.config.package_files import config_folder
from vrft.errors import UserError
from vrft.evaluate.protocols import protocol_key
from vrft.files import read_rows, read_written
from vrft.report.run_forms import FORMS, Alarm, LogLine, Provenance, ReportedConfig, Result, RowForm, ScoredForm
from vrft.tasks.rows import Row

METHOD_NAMES = {"grpo": "RFT", "sft": "SFT"}
NOT_COMPARED = ("run.", "question.", "logging.", "derived.")
"""Sections of a config in which runs of one experiment may differ."""
CHECKPOINT_NAMES = {"best": "best by validation", "last": "last step"}


def _family_of(group: str | None) -> str | None:
    """The family of a file of the config group `model`; None for one that vrft does not bring."""
    path = config_folder() / "model" / f"{group}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")).get("family") if path.is_file() else None


@dataclass(frozen=True)
class RunFiles:
    """A finished run directory. Files that a run may not have (no training, no evaluation) read as empty."""

    run_dir: Path
    _known: dict[str, list[dict]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._read("config.yaml", ReportedConfig)

    @cached_property
    def result(self) -> dict[str, Any]:
        return self._read("result.json", Result)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return self._read("provenance.json", Provenance) if (self.run_dir / "provenance.json").is_file() else {}

    @cached_property
    def logs(self) -> list[dict]:
        """The lines of `metrics.jsonl`, each with its `step`."""
        return self._lines("metrics.jsonl", LogLine)

    @cached_property
    def alarms(self) -> list[dict]:
        """The alarms of the training: `{"step", "rule", "action", "message"}` each."""
        return self._lines("alarms.jsonl", Alarm)

    @property
    def is_trained(self) -> bool:
        return bool(self.config["evaluate"]["train"])

    @property
    def method(self) -> str:
        """`RFT` or `SFT`, or what else the trainer is called."""
        return METHOD_NAMES.get(name := self.config["trainer"]["name"], name)

    @property
    def model_name(self) -> str:
        """The name of the model for readers: its config group, and the folder or hub name if it adds something.

        In place of a group of another family, as a checkpoint may be, its family.
        """
        path, chosen = self.config["model"]["path"], (self.provenance.get("choices") or {}).get("model")
        family = self.provenance.get("model_family") or self.config["model"]["family"]
        if _family_of(chosen) not in (None, family):
            chosen = family
        folder = Path(path or "")
        is_checkpoint = folder.parent.name == "checkpoints"
        shown = (
            f"{folder.parent.parent.name}, {folder.name}"
            if is_checkpoint
            else folder.name
            if folder.is_absolute()
            else path
        )
        return " · ".join(dict.fromkeys(str(part) for part in (chosen, shown) if part))

    @property
    def splits(self) -> list[str]:
        """The test sets, `test` first."""
        return list(self.result["test_sets"])

    def title(self, split: str) -> str:
        """The title of a test set in tables."""
        return self.config["evaluate"]["titles"].get(split, split)

    @property
    def evaluations(self) -> list[str]:
        """The names of the evaluations: `before` (training), and checkpoints such as `best` and `last`."""
        return list(dict.fromkeys(name for by_name in self.result["test_sets"].values() for name in by_name))

    @property
    def after(self) -> str | None:
        """The name of the evaluation that counts as `after`; None if there is none."""
        return self.result.get("after_is")

    @property
    def primary_metrics(self) -> tuple[str, ...]:
        """The protocol's metrics for comparisons; validation maximises the first."""
        return tuple(self.result["primary_metrics"])

    @property
    def best_step(self) -> int | None:
        """The first step with the highest validation metric; None without validation."""
        known = [entry for entry in self.result.get("validation") or [] if entry["value"] is not None]
        return max(known, key=lambda entry: entry["value"])["step"] if known else None

    def metrics(self, name: str, split: str = "test") -> dict[str, dict]:
        """`{metric: {"value", "n", "interval"}}` of an evaluation on a test set; empty if there is none."""
        by_protocol = self.result["test_sets"].get(split, {}).get(name) or {}
        return by_protocol.get(protocol_key(self.config["protocol"]), {})

    def rows(self, split: str = "test") -> list[Row]:
        return self._lines(f"data/{split}.jsonl", self._forms[0])

    def scores(self, name: str, split: str = "test") -> list[dict]:
        """The scored rows of an evaluation on a test set, in the order of the rows.

        Raises `UserError` if they are not those of the test set's rows.
        """
        scored = self._lines(path := f"evaluations/{name}/{split}/scores.jsonl", self._forms[1])
        ids, of_rows = ([one["row_id"] for one in lines] for lines in (scored, self.rows(split)))
        if scored and ids != of_rows and (self.run_dir / f"data/{split}.jsonl").is_file():
            raise UserError(
                f"{self.run_dir / path} has other rows than data/{split}.jsonl: {_difference(ids, of_rows)}"
            )
        return scored

    def judged_kinds(self, split: str = "test") -> list[str]:
        """The sides that the page shows: `before` and the name of `after`, if they were evaluated on the test set."""
        return [name for name in ("before", self.after) if name and self.scores(name, split)]

    def side_titles(self, split: str = "test") -> list[str]:
        """The titles of the sides of `judged_kinds`: Before and After, or Completion if there is only one."""
        kinds = self.judged_kinds(split)
        return ["Before", "After"] if len(kinds) > 1 else ["Completion"] * len(kinds)

    @property
    def _forms(self) -> tuple[type[RowForm], type[ScoredForm]]:
        return FORMS.get(self.config["protocol"]["scorer"], (RowForm, ScoredForm))

    def _read(self, name: str, form: type[BaseModel]) -> Any:
        path = self.run_dir / name
        if not path.is_file():
            raise UserError(f"{self.run_dir} has no {name}; the directory of a finished run is needed")
        return read_written(path, form)

    def _lines(self, name: str, form: type[BaseModel]) -> list[dict]:
        """The lines of a file, each read once; none if there is no such file."""
        if name not in self._known:
            path = self.run_dir / name
            self._known[name] = read_rows(path, form) if path.is_file() else []
        return self._known[name]


def _difference(ids: Sequence[str], of_rows: Sequence[str]) -> str:
    if len(ids) != len(of_rows):
        return f"{len(ids)} in place of {len(of_rows)}"
    place = next(place for place, pair in enumerate(zip(ids, of_rows, strict=True)) if pair[0] != pair[1])
    return f"row {ids[place]} in place of {of_rows[place]}"

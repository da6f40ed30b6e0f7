"""The files of a finished run, as the report reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vrft.config.package_files import config_folder
from vrft.errors import UserError
from vrft.evaluate.protocols import protocol_key
from vrft.files import read_rows
from vrft.tasks.rows import Row

METHOD_NAMES = {"grpo": "RFT", "sft": "SFT"}
CHECKPOINT_NAMES = {"best": "best by validation", "last": "last step"}


def _family_of(group: str | None) -> str | None:
    """The family of a file of the config group `model`; None for one that vrft does not bring."""
    path = config_folder() / "model" / f"{group}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["family"] if path.is_file() else None


@dataclass(frozen=True)
class RunFiles:
    """A finished run directory. Files that a run may not have (no training, no evaluation) read as empty."""

    run_dir: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._read("config.yaml", yaml.safe_load)

    @cached_property
    def result(self) -> dict[str, Any]:
        return self._read("result.json", json.loads)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return self._read("provenance.json", json.loads) if (self.run_dir / "provenance.json").is_file() else {}

    @cached_property
    def logs(self) -> list[dict]:
        """The lines of `metrics.jsonl`, each with its `step`."""
        return self._lines("metrics.jsonl")

    @cached_property
    def alarms(self) -> list[dict]:
        """The alarms of the training: `{"step", "rule", "action", "message"}` each."""
        return self._lines("alarms.jsonl")

    @property
    def is_trained(self) -> bool:
        return bool(self.config["evaluate"]["train"])

    @property
    def method(self) -> str:
        """`RFT` or `SFT`."""
        return METHOD_NAMES[self.config["trainer"]["name"]]

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
        return self._lines(f"data/{split}.jsonl")

    def scores(self, name: str, split: str = "test") -> list[dict]:
        """The scored rows of an evaluation on a test set, in the order of the rows."""
        return self._lines(f"evaluations/{name}/{split}/scores.jsonl")

    def judged_kinds(self, split: str = "test") -> list[str]:
        """The sides that the page shows: `before` and the name of `after`, if they were evaluated on the test set."""
        return [name for name in ("before", self.after) if name and self.scores(name, split)]

    def side_titles(self, split: str = "test") -> list[str]:
        """The titles of the sides of `judged_kinds`: Before and After, or Completion if there is only one."""
        kinds = self.judged_kinds(split)
        return ["Before", "After"] if len(kinds) > 1 else ["Completion"] * len(kinds)

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        path = self.run_dir / name
        if not path.is_file():
            raise UserError(f"{self.run_dir} has no {name}; the directory of a finished run is needed")
        try:
            return parse(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read ({error}); the file that vrft wrote is needed") from None

    def _lines(self, name: str) -> list[dict]:
        path = self.run_dir / name
        return read_rows(path) if path.is_file() else []

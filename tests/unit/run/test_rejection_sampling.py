"""The model's own completions are what the main process says they are, on every process."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from vrft.config.schema import Config, Trainer
from vrft.run import rejection_sampling
from vrft.run.rejection_sampling import FILE, rows_with_own_completions

ROWS = [{"row_id": "a"}, {"row_id": "b"}]
JUDGED = [{"row_id": "a", "text": "yes", "earned": 1.0}, {"row_id": "b", "text": "no", "earned": 0.0}]


@pytest.mark.parametrize("is_resuming", [True, False])
@pytest.mark.parametrize("is_main", [True, False])
def test_another_process_needs_no_file(tmp_path, monkeypatch, is_main, is_resuming):
    """Neither the one that the run began with nor the one just written, which a shared disk may show it later."""
    if is_main and is_resuming:
        (tmp_path / FILE).write_text("".join(json.dumps(one) + "\n" for one in JUDGED))
    said = iter([JUDGED if is_resuming else None, JUDGED])  # by the main process
    monkeypatch.setattr(
        rejection_sampling, "broadcast_object_list", lambda told: told if is_main else [next(said)], raising=False
    )
    monkeypatch.setattr(rejection_sampling, "_sample", lambda *_, **__: JUDGED if is_main else [])
    processes = SimpleNamespace(is_main_process=is_main, wait_for_everyone=lambda: None)
    config = Config.model_construct(trainer=Trainer.model_construct(own_samples=2, own_at_least=0.5))
    context = SimpleNamespace(run_dir=tmp_path, config=config, training_rows=ROWS, processes=processes)
    assert rows_with_own_completions(context, None) == [{"row_id": "a", "own_completion": "yes"}]
    assert (tmp_path / FILE).is_file() == is_main

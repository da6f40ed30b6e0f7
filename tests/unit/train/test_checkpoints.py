"""Which checkpoint a run goes on from, which ones stay, and to where logs and the best checkpoint are brought back."""

from __future__ import annotations

import json
import re
import resource

import pytest
import torch

from vrft.errors import UserError
from vrft.files import publish
from vrft.train.best_and_last import previous, rewind, rewind_rollouts, settle_best
from vrft.train.checkpoints import newest_checkpoint, remove_superfluous, staged


def checkpoint(parent, step: int, *, is_whole: bool = True):
    staging = parent / "checkpoint.partial"
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(bytes(step))
    publish(staging, parent / f"checkpoint-{step}")
    if not is_whole:
        (parent / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"")
    return parent / f"checkpoint-{step}"


def steps(parent) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_named(tmp_path, capsys):
    (tmp_path / "checkpoint-notes").mkdir()  # the user's own
    assert newest_checkpoint(tmp_path) is None
    whole = [checkpoint(tmp_path, step) for step in (9, 10)]
    for step in (30, 200):
        checkpoint(tmp_path, step, is_whole=False)
    (tmp_path / "checkpoint-50").mkdir()
    assert newest_checkpoint(tmp_path) == whole[1]
    told = capsys.readouterr().err.splitlines()
    assert [line.partition("checkpoint-")[2].split()[0].rstrip(":") for line in told] == ["200", "50", "30"]
    assert "model.safetensors has 0 bytes in place of 200" in told[0]
    assert "was never completed" in told[1]


@pytest.mark.parametrize(
    ("limit", "begun", "written", "left"),
    [
        (2, None, [10, 20, 30, 40], [30, 40]),
        (1, None, [10, 20, 30, 40], [40]),
        (3, None, [10, 20, 30, 40], [20, 30, 40]),
        *((none, None, [10, 20, 30, 40], [10, 20, 30, 40]) for none in (None, 0, -1)),  # as transformers reads them
        (2, 20, [30], [20, 30]),  # 40 lay there damaged, and the run went on from 20
        (1, 20, [30], [30]),
        (None, 20, [30], [10, 20, 30]),
        (2, 10, [40], [10, 40]),  # 20 and 30 were damaged: neither takes the place of a good one
        (2, None, [40], [40]),  # all were
    ],
)
def test_the_newest_good_ones_stay(tmp_path, limit, begun, written, left):
    """begun: the step that training went on from. written: the steps saved since."""
    for step in (10, 20, 30, 40):
        checkpoint(tmp_path, step, is_whole=step <= (begun or 0) or step in written)
    (tmp_path / "best.previous").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()  # the user's own
    names = {f"checkpoint-{step}" for step in written}
    remove_superfluous(tmp_path, limit=limit, resumed_step=begun or 0, written=names)
    assert steps(tmp_path) == [*(f"checkpoint-{step}" for step in left), "checkpoint-notes"]


def best(folder, step: int):
    staging = folder.with_name("staging")
    staging.mkdir()
    (staging / "vrft.json").write_text(json.dumps({"step": step}))
    publish(staging, folder)


@pytest.mark.parametrize(
    ("now", "before", "step", "left"),
    [
        (8, None, 8, 8),
        (12, 8, 8, 8),  # replaced after the step that is resumed from
        (12, None, None, None),  # the first, after it
        (None, 8, 8, 8),  # killed between the two renames
        (10, 8, 10, 10),  # killed before the older one was removed
        (None, None, None, None),
        (0, None, 0, 0),
    ],
)
def test_the_best_checkpoint_is_that_of_the_step_gone_on_from(tmp_path, now, before, step, left):
    folder = tmp_path / "best"
    for path, of_step in ((folder, now), (previous(folder), before)):
        if of_step is not None:
            best(path, of_step)
    assert settle_best(folder, step) is None
    assert not previous(folder).exists()
    found = json.loads((folder / "vrft.json").read_text())["step"] if folder.exists() else None
    assert found == left


@pytest.mark.parametrize(
    ("now", "before", "fault"),
    [
        (None, None, "best is gone"),
        (12, None, "best was of step 12"),
        (12, 10, "best was of step 12; .*best.previous was of step 10"),
        ("cut", None, "vrft.json has 0 bytes in place of 11"),
    ],
)
def test_a_best_checkpoint_that_is_lost_is_told_and_no_other_has_its_name(tmp_path, now, before, fault):
    folder = tmp_path / "best"
    for path, of_step in ((folder, now), (previous(folder), before)):
        if of_step is not None:
            best(path, 8 if of_step == "cut" else of_step)
    if now == "cut":
        (folder / "vrft.json").write_text("")
    assert re.search(fault, settle_best(folder, 8))
    assert not previous(folder).exists()
    assert folder.exists() == (now == "cut"), "what is damaged may be mended, and is never judged as it is"


def test_logs_are_cut_back_and_a_half_written_line_goes(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert rewind(file, 5) == []
    lines = [{"step": step, "loss": 0.5} for step in (0, 1, 2, 2, 3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    assert rewind(file, 2) == lines[:4]
    assert [json.loads(line) for line in file.read_text().splitlines()] == lines[:4]
    assert rewind(file, 0) == []
    assert file.read_text() == ""


def test_a_damaged_log_is_named_by_its_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not JSON"):
        rewind(file, 3)
    assert file.read_text() == '{"step": 1}\n{"st\n{"step": 3}\n', "nothing is lost"


def test_rollouts_of_later_steps_go(tmp_path):
    for name in ("step_000000", "step_000001", "step_000001_rank1", "step_000002", "step_000002_rank1"):
        (tmp_path / f"{name}.jsonl").touch()
    rewind_rollouts(tmp_path, 2)
    assert steps(tmp_path) == ["step_000000.jsonl", "step_000001.jsonl", "step_000001_rank1.jsonl"]


def test_a_limit_that_torch_runs_into_is_told_as_the_disks(tmp_path):
    """torch raises a RuntimeError without a cause, here by `ulimit -f`; a quota and a full disk are the same to it."""
    folder, (soft, hard) = tmp_path / "checkpoint-4", resource.getrlimit(resource.RLIMIT_FSIZE)
    inner = tmp_path / "checkpoint.partial" / folder.name
    made = staged(folder, is_main=True, wait=lambda: inner.mkdir(parents=True, exist_ok=True))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"), made:
            torch.save(torch.zeros(100_000), inner / "optimizer.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

"""Logging back ends, read back from what they left on disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path

BLOCK = 32 * 1024  # of the LevelDB log format in which W&B writes a run


def wandb_records(path: Path) -> list:
    """The protobuf records of an offline W&B run file, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, records = path.read_bytes(), 7, b"", []  # 7: the file's own header
    while position + 7 <= len(data):
        left_in_block = BLOCK - position % BLOCK
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            record = Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def test_wandb_offline_holds_every_term_of_every_step(vrft, tmp_path):
    run_dir = tmp_path / "run"
    vrft(
        "train", "experiment=digits_riddles", "debug=smoke", f"run.dir={run_dir}", "logging=wandb_offline",
        "evaluate.before=false", "evaluate.after=false",
    )  # fmt: skip
    (run_file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    history = []
    for record in wandb_records(run_file):
        items = record.history.item
        history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    logged = [entry for entry in history if any("iou/mean" in key for key in entry)]
    assert len(logged) == 2
    assert any("validation" in key for entry in history for key in entry)
    ours = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rewards = [entry["reward"] for entry in ours if "reward" in entry]
    assert [entry["train/reward"] for entry in logged] == rewards


def test_tensorboard_writes_event_files(vrft, tmp_path):
    run_dir = tmp_path / "run"
    vrft(
        "train", "experiment=digits_riddles", "debug=smoke", f"run.dir={run_dir}", "logging=tensorboard",
        "evaluate.before=false", "evaluate.after=false",
    )  # fmt: skip
    assert list(run_dir.rglob("events.out.tfevents.*"))

"""A reader of the file that an offline W&B run leaves."""

from __future__ import annotations

import json
import struct
from pathlib import Path

FILE_HEADER, BLOCK = 7, 32 * 1024  # bytes; blocks of the LevelDB log format


def read_history(path: Path) -> list[dict]:
    """What the run logged, a dict a step, in order."""
    history = []
    for record in _records(path):
        items = record.history.item
        history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return history


def read_run(path: Path) -> dict:
    """`{"name", "group", "job_type", "tags", "config", "summary"}` of the run, as they stood at its end."""
    run = {"config": {}, "summary": {}}
    for record in _records(path):
        if record.HasField("run"):
            told = record.run
            run |= {"name": told.display_name, "group": told.run_group, "job_type": told.job_type}
            run["tags"] = list(told.tags)
        for key, items in (("config", record.run.config.update), ("config", record.config.update),
                           ("summary", record.summary.update)):  # fmt: skip
            run[key] |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    return run


def _records(path: Path) -> list:
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, records = path.read_bytes(), FILE_HEADER, b"", []
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

"""`~/` in paths, and paths that are not there."""

from __future__ import annotations

from pathlib import Path

from vrft.config.paths import expand_home, missing_paths


def test_home_is_expanded_in_every_path_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = {
        "out": "~/out",
        "runs": ["~/a", "b~/c"],
        "dataset": {"path": "~/rows.jsonl", "image_root": None, "test_classes": ["~/few.txt"]},
        "predict": {"image": "~/photo.jpg", "ask": "~/what is this?"},
        "model": {"path": "~user/x"},
    }
    expand_home(values)
    assert values == {
        "out": "/home/me/out",
        "runs": ["/home/me/a", "b~/c"],
        "dataset": {"path": "/home/me/rows.jsonl", "image_root": None, "test_classes": ["/home/me/few.txt"]},
        "predict": {"image": "/home/me/photo.jpg", "ask": "~/what is this?"},
        "model": {"path": "~user/x"},
    }


def test_what_is_read_must_be_there(tmp_path):
    there = tmp_path / "rows.jsonl"
    there.touch()
    hub = {"model": {"path": "Qwen/Qwen2-VL-2B-Instruct"}, "dataset": {"path": str(there)}, "predict": None}
    assert list(missing_paths(hub)) == []
    gone = {"model": {"path": "./no"}, "dataset": {"path": "no.jsonl", "test_path": None}, "out": "new"}
    assert [fault.partition(":")[0] for fault in missing_paths(gone)] == [
        "model.path is './no'",
        "dataset.path is 'no.jsonl'",
    ]
    assert not Path("new").exists()

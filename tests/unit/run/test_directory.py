"""A run directory: what a failed start leaves, and the record of what ran."""

from __future__ import annotations

import pytest

from vrft.data.images import KEPT_FILE
from vrft.errors import UserError
from vrft.run.directory import code_state, fresh_run_dir, remove_all_but_cache, weight_hash


def test_a_failed_start_leaves_no_run_directory(tmp_path):
    def start() -> None:
        with fresh_run_dir(tmp_path / "run", is_resuming=False):
            (tmp_path / "run" / "data").mkdir()
            raise UserError("no rows")

    with pytest.raises(UserError, match="no rows"):
        start()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "is_kept"), [("mine", True), ("2026-11-30_16-24-07_train", False)])
def test_checked_images_stay_where_the_same_command_finds_them(tmp_path, name, is_kept):
    """A run directory that is named after its time has another name the next time."""
    images = tmp_path / name / "data" / "images"
    images.mkdir(parents=True)
    for path in (images / "0.png", images.parent / KEPT_FILE, images.parent / "train.jsonl"):
        path.touch()
    remove_all_but_cache(tmp_path / name)
    assert images.is_dir() == (tmp_path / name).exists() == is_kept
    assert not (images.parent / "train.jsonl").exists()


def test_a_failed_resumption_keeps_what_was_there(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(UserError), fresh_run_dir(tmp_path, is_resuming=True):
        raise UserError("other data")
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_weights_are_hashed_by_content(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = weight_hash(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert first.startswith("xxh3_128:")
    assert weight_hash(tmp_path) != first
    assert weight_hash(tmp_path / "no_such_folder") is None


def test_code_outside_a_checkout_has_no_commit(tmp_path):
    assert code_state(tmp_path) == {"commit": None, "is_dirty": None}

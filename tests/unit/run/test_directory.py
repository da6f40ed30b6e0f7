"""A run directory: what a failed start leaves, and the record of what ran."""

from __future__ import annotations

import pytest

from vrft.errors import UserError
from vrft.run.directory import code_state, fresh_run_dir


def test_a_failed_start_leaves_no_run_directory(tmp_path):
    def start() -> None:
        with fresh_run_dir(tmp_path / "run", is_resuming=False):
            (tmp_path / "run" / "data").mkdir()
            raise UserError("no rows")

    with pytest.raises(UserError, match="no rows"):
        start()
    assert not (tmp_path / "run").exists()


def test_a_failed_resumption_keeps_what_was_there(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(UserError), fresh_run_dir(tmp_path, is_resuming=True):
        raise UserError("other data")
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_code_outside_a_checkout_has_no_commit(tmp_path):
    assert code_state(tmp_path) == {"commit": None, "is_dirty": None}

"""Before a worker starts: another experiment in the run directory is refused, a frame unknown to the model is told."""

import json

import pytest

from vrft.errors import UserError
from vrft.experiment import check_same_experiment, warn_of_frames

HASHES = {"config_hash": "c", "data_hash": "d", "model_hash": "m"}


@pytest.mark.parametrize(("key", "what"), [("config_hash", "config"), ("data_hash", "data"), ("model_hash", "model")])
def test_another_config_data_or_model_is_refused(tmp_path, key, what):
    (tmp_path / "provenance.json").write_text(json.dumps(HASHES))
    check_same_experiment(tmp_path, HASHES)
    check_same_experiment(tmp_path, {name: value for name, value in HASHES.items() if name != key})  # not yet known
    with pytest.raises(UserError, match=rf"cannot go on:\n  - {what}.*: {HASHES[key]} then, x now"):
        check_same_experiment(tmp_path, {**HASHES, key: "x"})


@pytest.mark.parametrize(
    ("family", "frame", "columns", "is_told"),
    [
        ("qwen2_vl", "norm1000", {"problem": "?"}, False),
        ("qwen2_5_vl", "norm1000", {"problem": "?"}, True),
        ("qwen2_5_vl", "norm1000", {"phrase": "?"}, False),  # asked in the model's frame
        ("qwen2_5_vl", "seen_pixels", {"problem": "?"}, False),
        ("qwen2_5_vl", None, {"problem": "?"}, False),
    ],
)
def test_a_frame_that_the_model_does_not_speak_is_told(capsys, family, frame, columns, is_told):
    warn_of_frames({"train": [{"row_id": "a", **columns}]}, {"model": {"family": family}, "dataset": {"frame": frame}})
    told = capsys.readouterr().err
    assert ("1 rows bring their own question, with boxes in norm1000" in told) == is_told
    assert bool(told) == is_told

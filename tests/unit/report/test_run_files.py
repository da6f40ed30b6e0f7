"""What a run is called in tables, and which of its checkpoints is the model as it was."""

import json

import pytest
from written_run import write_config, write_result

from vrft.report.figures import methods_of, panels
from vrft.report.page import markdown_table, text_table
from vrft.report.run_files import RunFiles


def a_run(folder, *, family="tiny", path="/models/x", choice="tiny", validation=(), own=None):
    """A finished run of one question, without rows."""
    figure = {"accuracy": {"value": 0.5, "n": 1, "interval": None}}
    figures = {"grounding_v1": figure}
    write_config(folder, model={"path": path, "family": family})
    write_result(
        folder, after_is="best", primary_metrics=["accuracy"], test_sets={"test": {"before": figures, "best": figures}},
        validation=[{"step": step, "value": value, "n": 1} for step, value in validation],
    )  # fmt: skip
    record = {"choices": {"model": choice}} | ({"model_family": own} if own else {})
    (folder / "provenance.json").write_text(json.dumps(record))
    return RunFiles(folder)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "tiny · x"),
        # `evaluate model.path=CKPT` alone: the group is the default, the family is the checkpoint's
        ({"family": "qwen2_5_vl", "path": "runs/a/checkpoints/last"}, "qwen2_5_vl · a, last"),
        ({"family": "qwen2_5_vl", "choice": "qwen2_5_vl_7b"}, "qwen2_5_vl_7b · x"),
        ({"family": "qwen2_vl", "choice": "mine"}, "mine · x"),  # a file of one's own
        # a tiny checkpoint under another model file, as its vrft.json says
        ({"family": "qwen2_vl", "choice": "qwen2_vl_2b", "own": "tiny"}, "tiny · x"),
    ],
)
def test_a_checkpoint_is_called_by_its_own_family(tmp_path, given, name):
    assert a_run(tmp_path, **given).model_name == name


@pytest.mark.parametrize(("validation", "is_told"), [([(0, 0.5), (2, 0.5)], True), ([(0, 0.5), (2, 0.6)], False)])
def test_a_best_checkpoint_that_is_the_untrained_model_is_told_below_the_table(tmp_path, validation, is_told):
    shown = panels(methods_of([a_run(tmp_path, validation=validation)]))
    for table in (text_table(shown), markdown_table(shown)):
        assert ("RFT, best by validation: step 0, the untrained model" in table) == is_told

"""AP by class and by size as the report shows it, on a run written by hand."""

import pytest
from written_run import write_config, write_evaluated, write_result

from vrft.evaluate.coco import average_precision
from vrft.report.detection import detection_figures
from vrft.report.run_files import RunFiles

# (category, image, gold, boxes with confidence of the second side; None is unreadable)
QUESTIONS = [
    ("dog", "a", [[0, 0, 20, 20]], [([0, 0, 20, 20], 0.9)]),
    ("dog", "b", [[0, 0, 150, 150]], [([0, 0, 150, 150], 0.5), ([160, 160, 180, 180], 0.7)]),
    ("cat", "a", [[50, 50, 100, 100]], None),
    ("zebra", "a", [], [([5, 5, 40, 40], 0.8)]),
    ("okapi", "b", [], []),
]
DOG_AP = (51 * 1 + 50 * 2 / 3) / 101  # by hand: right, wrong, right; recall 0 … 0.5 at precision 1, then at 2/3


@pytest.fixture
def run(tmp_path):
    rows, answers = [], []
    for number, (category, image, gold, found) in enumerate(QUESTIONS):
        rows.append({"row_id": f"r{number}", "images": [f"{image}.png"], "image_wh": [200, 200], "category": category,
                     "gold": gold})  # fmt: skip
        boxes = None if found is None else [{"xyxy": xyxy, "confidence": c, "label": ""} for xyxy, c in found]
        answers.append({"answer": boxes})
    write_evaluated(tmp_path, rows, before=[{"answer": None}] * len(rows), best=answers)
    write_config(tmp_path, protocol={"name": "coco_all", "scorer": "coco"})
    write_result(tmp_path, after_is="best", test_sets={"test": {}})
    return RunFiles(tmp_path)


def test_classes_stand_with_their_gold_and_absent_ones_apart(run):
    found = detection_figures(run)
    assert found.sides == ["Before", "After"]
    cat, dog = found.class_lines
    assert (cat.name, cat.n_gold, cat.n_images, cat.values) == ("cat", 1, 1, [0.0, 0.0])
    assert cat.intervals == [None, None], "one image holds all its gold"
    assert (dog.name, dog.n_gold, dog.n_images) == ("dog", 2, 2)
    assert dog.values == pytest.approx([0.0, DOG_AP], abs=1e-12)
    low, high = dog.intervals[1]
    assert low <= DOG_AP <= high
    absent = [(one.name, one.n_found, one.was_asked) for one in found.absent]
    assert absent == [("okapi", [0, 0], True), ("zebra", [0, 1], True)]


def test_the_classes_mean_is_the_official_figure(run):
    boxes = [[(one[0], one[1]) for one in found or []] for *_, found in QUESTIONS]
    official = average_precision(run.rows(), boxes, n_resamples=10)
    found = detection_figures(run)
    mean = sum(line.values[1] for line in found.class_lines) / len(found.class_lines)
    assert mean == pytest.approx(official["AP"]["value"], abs=1e-12)
    notes = [chart.note for chart in found.curves]
    for name, note in zip(("AP50", "AP75", "AP"), notes, strict=True):
        assert note.endswith(f"{name} 0.000 before, {official[name]['value']:.3f} after")
    assert [chart.title for chart in found.class_curves] == ["dog", "cat"], "most gold first"


def test_sizes_count_only_boxes_of_that_size(run):
    sizes = {panel.title.partition(":")[0]: panel for panel in detection_figures(run).sizes}
    values = {name: pytest.approx([line.value for line in panel.lines]) for name, panel in sizes.items()}
    assert values == {"small": [0.0, 1.0], "medium": [0.0, 0.0], "large": [0.0, 1.0]}
    assert [panel.n for panel in sizes.values()] == ["1"] * 3
    assert sizes["small"].lines[1].change["value"] == pytest.approx(1.0)


def test_a_size_without_gold_is_named_and_has_no_figure(run):
    rows = [dict(row, gold=[]) if row["category"] == "cat" else row for row in run.rows()]
    write_evaluated(run.run_dir, rows)
    found = detection_figures(RunFiles(run.run_dir))
    assert found.missing_sizes == ["medium"]
    assert [panel.title.partition(":")[0] for panel in found.sizes] == ["small", "large"]


def test_labels_never_asked_for_are_told_apart(run):
    def labelled(row):
        gold = [{"label": row["category"], "xyxy": xyxy} for xyxy in row["gold"]]
        return {**{key: row[key] for key in row if key != "category"}, "categories": [row["category"]], "gold": gold}

    box = {"xyxy": [0, 0, 9, 9], "confidence": 0.5, "label": "Yeti"}
    write_evaluated(run.run_dir, list(map(labelled, run.rows())), best=[{"answer": [box]}, *[{"answer": []}] * 4])
    absent = [(one.name, one.n_found, one.was_asked) for one in detection_figures(RunFiles(run.run_dir)).absent]
    assert absent == [("okapi", [0, 0], True), ("zebra", [0, 0], True), ("yeti", [0, 1], False)]


def test_other_protocols_have_no_such_figures(run):
    run.config["protocol"]["scorer"] = "grounding"
    assert detection_figures(run) is None

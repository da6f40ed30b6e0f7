"""Users' rows: what is read, what is refused by row, and that splits share no image."""

import datetime
import io
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vrft.data.json_rows import build
from vrft.errors import UserError
from vrft.files import write_rows
from vrft.tasks import load_task

BOX = {"category": "dog", "gold": [[1, 2, 30, 40]]}


def picture(seed=0, size=(64, 48), mode="RGB"):
    """An image of its own content for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def png(image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def data(tmp_path):
    """A folder with 0.png … 5.png of different content."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(6):
        picture(seed).save(folder / f"{seed}.png")
    return folder


def built(data, rows=None, *, task="detection", file="rows.jsonl", seed=0, **options):
    if rows is not None:
        write_rows(data / file, rows)
    usual = {} if {"test_path", "test_split"} & set(options) else {"n_test": 0}
    options = {"builder": "records", "path": str(data / file), **usual, **options}
    return build(options, task=load_task(task), out_dir=data.parent / "run", seed=seed)


def refusal(data, rows=None, **options) -> str:
    with pytest.raises(UserError) as caught:
        built(data, rows, **options)
    return str(caught.value)


def test_own_columns_are_kept_and_completed(data):
    splits = built(
        data, [{"image": "0.png", "note": "mine", **BOX}, {"images": ["1.png", "2.png"], "row_id": 7, **BOX}]
    )
    assert splits["validation"] == splits["test"] == []
    shared = {"image_wh": [64, 48], **BOX}
    assert splits["train"] == [  # by their ids
        {**shared, "row_id": "7", "images": [str(data / "1.png"), str(data / "2.png")]},
        {**shared, "row_id": "row-000001", "images": [str(data / "0.png")], "note": "mine"},
    ]


@pytest.mark.parametrize(
    ("task", "frame", "solution", "gold"),
    [
        (
            "detection",
            "norm1000",
            "<answer>[{'Position': [500, 0, 1000, 500], 'Confidence': 1}]</answer>",
            [[32, 0, 64, 24]],
        ),
        ("detection", "pixels", "<answer>[{'Position': [5, 0, 10, 15], 'Confidence': 1}]</answer>", [[5, 0, 10, 15]]),
        ("detection", "norm1000", "<answer>No Objects</answer>", []),
        ("reasoning_grounding", "norm1000", "<answer> (0,0),(500,1000) </answer>", [0, 0, 32, 48]),
        ("grounding", "norm1", "<answer>(0,0),(0.5,1)</answer>", [0, 0, 32, 48]),
        ("classification", "norm1000", "<answer>Maine_Coon</answer>", "Maine_Coon"),
        ("classification", None, "Maine_Coon", "Maine_Coon"),  # a name has no frame
    ],
)
@pytest.mark.parametrize("column", ["image", "image_path"])
def test_published_rows_are_read_in_their_frame(data, column, task, frame, solution, gold):
    problem = "Where … ? \u2028 <think> {'Position': [x1, y1, x2, y2]}"
    [row] = built(data, [{column: "0.png", "problem": problem, "solution": solution}], task=task, frame=frame)["train"]
    assert row["gold"] == gold
    assert row["problem"] == load_task(task).question(row, None) == problem
    assert "solution" not in row


def test_columns_may_be_called_otherwise(data):
    columns = {"image": "file", "category": "label", "problem": "problem"}
    [row] = built(data, [{"file": "0.png", "label": "cat", "gold": []}], columns=columns)["train"]
    assert row["category"] == "cat"
    assert "label" not in row
    assert "column 'file' (dataset.columns.image) is missing; the row has category, gold, image" in refusal(
        data, [{"image": "0.png", **BOX}], columns=columns
    )


@pytest.mark.parametrize(
    "problem",
    [
        "<image>How many blocks?",
        "<image>\nHow many blocks?",
        "How many blocks?\n<image>",
        "How many blocks? <image>",
        "<image 1> How many blocks?",
        "<IMAGE>\n\nHow many blocks?",
    ],
)
def test_the_mark_of_an_image_is_taken_out_of_a_question(data, problem):
    [row] = built(data, [{"image": "0.png", "problem": problem, "gold": 3}], task="counting")["train"]
    assert row["problem"] == "How many blocks?"


def test_the_marks_of_several_images_are_taken_out(data):
    row = {"images": ["0.png", "1.png"], "problem": "Compare.\n<image><image>\nHow many blocks?", "gold": 3}
    [row] = built(data, [row], task="counting")["train"]
    assert row["problem"] == "Compare.\nHow many blocks?"


def test_columns_that_no_task_reads_are_left_out_where_json_cannot_hold_them(data, capsys):
    pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    odd = {"taken": datetime.date(2024, 5, 1), "lux": float("nan"), "note": " ", "raw": b"\x00", "site": "A"}
    rows = [{"image": png(picture(n)), **BOX, **odd} for n in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), data / "rows.parquet")
    splits = built(data, file="rows.parquet")
    assert [set(row) - {"row_id", "images", "image_wh", *BOX} for row in splits["train"]] == [{"site"}] * 2
    said = capsys.readouterr().err
    assert all(
        f"2 values of column {name!r}, which no task reads, are left out" in said for name in odd if name != "site"
    )


def test_a_row_given_twice_is_mentioned(data, capsys):
    rows = [{"image": "0.png", "id": 1, **BOX}, {"image": "0.png", "id": 2, **BOX}, {"image": "1.png", **BOX}]
    assert len(built(data, rows)["train"]) == 3
    assert "1 rows are given twice (same image, question and gold)" in (said := capsys.readouterr().err)
    assert "row-000002 as row-000001" in said
    built(data, rows[1:])
    assert "twice" not in capsys.readouterr().err


BAD_ROWS = [
    ({**BOX}, "one column of image, images, image_path is needed"),
    ({**BOX, "image": "0.png", "image_path": "0.png"}, "one column of image"),
    ({**BOX, "images": []}, "empty list"),
    ({**BOX, "image": 3}, "image 3 is not the path"),
    ({**BOX, "image": "missing.png"}, "'missing.png' is missing"),
    ({**BOX, "image": "."}, "is missing"),
    ({**BOX, "image": "x" * 300}, "is not the path"),
    ({**BOX, "image": "\x00.png"}, "null"),
    ({**BOX, "image": "https://example.org/a.png"}, "is a URL, and none is fetched"),
    ({**BOX, "image": "file:///etc/hostname"}, "is a URL"),
    ({**BOX, "image": "data:image/png;base64,AAAA"}, "is a URL"),
    ({**BOX, "image": "../secret.png"}, "outside of"),
    ({**BOX, "image": "/etc/hostname"}, "outside of"),
    ({**BOX, "image": "link.png"}, "outside of"),  # a symbolic link that leaves the folder
    ({**BOX, "image": "linked/secret.png"}, "outside of"),  # and a linked folder
    ({"image": "0.png", "category": "dog"}, "column 'gold' is missing; the row has"),
    ({"image": "0.png", "category": "", "gold": []}, "column 'category' is ''"),
    ({"image": "0.png", "category": " \n", "gold": []}, "column 'category'"),
    ({"image": "0.png", "gold": []}, "category"),
    ({"image": "0.png", "category": "dog", "gold": [[0, 0, 65, 48]]}, "outside the image of 64 × 48"),
    ({"image": "0.png", "category": "dog", "gold": [[30, 2, 1, 40]]}, "no area"),
    ({"image": "0.png", "category": "dog", "gold": [[0.1, 0.2, 0.45, 0.6]]}, "as a box in fractions of the image does"),
    ({"image": "0.png", "category": "dog", "gold": [[1, 2, 3]]}, "four finite numbers"),
    ({**BOX, "image": "0.png", "distractors": [[0, 0, 99, 9]]}, "distractors: box"),
    ({**BOX, "image": "0.png", "distractors": 3}, "'distractors' is '3'; a list is needed"),
    ({**BOX, "image": "0.png", "image_wh": [48, 64]}, "image_wh is [48, 64], but the upright image has [64, 48]"),
    ({**BOX, "image": "0.png", "problem": ["Where?"]}, "a str is needed"),
    ({**BOX, "image": "0.png", "problem": "Where? <|image_pad|>"}, "special token '<|image_pad|>'"),
    ({**BOX, "image": "0.png", "solution": "<answer>No Objects</answer>"}, "both gold and solution"),
    (
        {"image": "0.png", "problem": "?", "solution": "a dog"},
        "solution 'a dog' cannot be read (not_found); right: <answer>",
    ),
    ({"image": "0.png", "problem": "?", "solution": "[{'Position': [0, 0, 5, 5]}, {'Posi"}, "(cut)"),
    ({"image": "0.png", "problem": "?", "solution": "[[0, 0, 1001, 5]]"}, "outside the image"),
    ({"image": "0.png", "problem": "?", "solution": [[0, 0, 5, 5]]}, "'solution'"),
    (
        {**BOX, "image": "0.png", "problem": "In <image>, where?"},
        "images stand before the question",
    ),
    ({**BOX, "image": "0.png", "problem": "<image><image>Where?"}, "with 2 times <image>, and the row has 1 images"),
    ({**BOX, "image": "0.png", "problem": "<image>"}, "write it without <image>"),
]


@pytest.fixture
def with_links(data):
    picture(99).save(data.parent / "secret.png")
    (data / "link.png").symlink_to(data.parent / "secret.png")
    (data / "linked").symlink_to(data.parent)
    return data


@pytest.mark.parametrize(("row", "words"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_value(with_links, row, words):
    message = refusal(with_links, [{"image": "0.png", **BOX}, row], frame="norm1000")
    assert "rows.jsonl, row 2: " in message
    assert words in message
    assert "row 1:" not in message


def test_all_faults_are_shown_together(with_links):
    message = refusal(with_links, [row for row, _ in BAD_ROWS], frame="norm1000")
    assert message.count("rows.jsonl, row ") == 20
    assert f"and {len(BAD_ROWS) - 20} more" in message


def test_lines_that_are_no_rows_are_shown_with_the_rest(data):
    lines = ['{"image": "0.png"', '{"image": "0.png", "category": "dog", "gold": [[NaN, 0, 5, 5]]}', "[]"]
    (data / "rows.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    message = refusal(data)
    for words in ("line 1: not JSON", "row 2: column 'gold'", "line 3: list found"):
        assert words in message


def test_a_lone_surrogate_is_refused(data):
    (data / "rows.jsonl").write_text('{"image": "0.png", "category": "\\ud800", "gold": []}')
    assert "row 1: column 'category'" in refusal(data)


def test_row_ids_are_unique_over_all_splits(data):
    rows = [{"image": f"{n}.png", "row_id": "same", **BOX} for n in range(2)]
    assert "row_id 'same' occurs 2 times" in refusal(data, rows)
    write_rows(data / "test.jsonl", [{"image": "3.png", "row_id": "same", **BOX}])
    assert "row_id 'same' occurs 2 times" in refusal(data, rows[:1], test_path=str(data / "test.jsonl"))


@pytest.mark.parametrize(
    ("task", "solution", "frame", "words"),
    [
        (
            "detection",
            "[[0, 0, 5, 5]]",
            None,
            "dataset.frame must name: norm1000, pixels or norm1. Their largest number is 5",
        ),
        ("grounding", "(40,20),(230,190)", None, "type dataset.frame=pixels if they are pixels of it"),
        ("pointing", "(40,20),(230,190)", None, "dataset.frame must name"),
        ("grounding", "[0.1, 0.2, 0.45, 0.6]", "norm1000", "fractions, up to 0.6, and dataset.frame is norm1000"),
        ("detection", "[[0, 0, 1, 1], [0, 0, 0.5, 1]]", "pixels", "type dataset.frame=norm1"),
        ("detection", "No Objects", None, None),  # nothing in a frame
        ("counting", "3", None, None),
        ("classification", "0.5", None, None),
    ],
)
def test_the_frame_of_boxes_is_asked_for_and_doubted(data, task, solution, frame, words):
    rows = [{"image": "0.png", "problem": "?", "solution": solution}]
    if words is None:
        assert len(built(data, rows, task=task, frame=frame)["train"]) == 1
    else:
        assert words in refusal(data, rows, task=task, frame=frame)


def test_only_published_rows_with_boxes_state_a_frame():
    configs = Path(__file__).parents[3] / "conf" / "dataset"
    frames = {path.stem: yaml.safe_load(path.read_text("utf-8")).get("frame") for path in configs.glob("*.yaml")}
    stated = {name: frame for name, frame in frames.items() if frame}
    assert stated == dict.fromkeys(
        ["virft_coco", "virft_coco_8_cate_4_shot", "virft_coco_base65", "virft_lvis_few_shot"], "norm1000"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": None}, "give exactly one"),
        ({"hub": "laolao77/ViRFT_COCO"}, "give exactly one"),
        ({"path": "nowhere/rows.jsonl"}, "dataset.path is 'nowhere/rows.jsonl': there is no such file"),
        ({"test_path": "nowhere.jsonl"}, "dataset.test_path is 'nowhere.jsonl'"),
        ({"image_root": "nowhere"}, "dataset.image_root is 'nowhere'"),
        ({"frame": "norm999"}, "dataset.frame is 'norm999'"),
        ({"frame": "seen_pixels"}, "pixel limits"),
        ({"n_validation": -1}, "dataset.n_validation is -1"),
        ({"n_test": 0.5}, "dataset.n_test is 0.5"),
        ({"k_shot": 0}, "dataset.k_shot is 0"),
        ({"n_valid": 3}, "no key 'n_valid'; did you mean n_validation? known: image_root, "),
    ],
)
def test_a_wrong_option_is_named(data, options, words):
    assert words in refusal(data, [{"image": "0.png", **BOX}], **options)


def test_a_source_that_is_all_test_set_can_be_evaluated_on(data):
    splits = built(data, [{"image": "0.png", **BOX}], n_test=10)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 0, "validation": 0, "test": 1}


def test_a_source_without_rows_is_refused(data):
    assert "has no rows" in refusal(data, [])
    (data / "rows.json").write_text("[]")
    assert "has no rows" in refusal(data, file="rows.json")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.json", '{"image": "0.png"}', "holds a dict; a list of objects"),
        ("rows.json", '[{"image": ', "not JSON"),
        ("rows.json", "[" * 100_000, "not JSON"),
        ("rows.json", "[3]", "rows.json, row 1: int found"),
        (
            "rows.json",
            '[{"gold": 1, "image": "0.png", "gold": 2}]',
            "the key 'gold' stands twice in {'gold': 2, 'image'",
        ),
        ("rows.jsonl", '{"gold": 1, "image": "0.png", "gold": 2}', "line 1: not JSON (the key 'gold' stands twice"),
        ("rows.json", b"[\xff]", "not UTF-8"),
        ("rows.csv", "image,gold", "end in .jsonl, .json, .parquet"),
        ("rows.parquet", "PAR1", "cannot be read as a parquet file"),
    ],
)
def test_a_file_that_holds_no_rows_is_named(data, name, content, words):
    (data / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refusal(data, file=name)


ROWS = [{"image": f"{n}.png", "category": "dog", "gold": [[n, 0, 9, 9]]} for n in range(3)]


def test_json_with_a_byte_order_mark_is_read(data):
    (data / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8-sig")
    assert [row["gold"][0][0] for row in built(data, file="rows.json")["train"]] == [0, 1, 2]
    assert len(built(data, file="rows.json", max_rows=2)["train"]) == 2


def test_a_folder_holds_a_file_for_each_split(data):
    write_rows(data / "train.jsonl", ROWS[:2])
    write_rows(data / "test.jsonl", ROWS[2:])
    splits = built(data, file=".", test_split="test")
    assert [row["row_id"] for row in splits["train"]] == ["row-000001", "row-000002"]
    assert [row["row_id"] for row in splits["test"]] == ["test-000001"]
    assert "of the split 'dev' it holds none of them" in refusal(data, file=".", split="dev")
    (data / "train.json").write_text("[]")
    assert "it holds train.jsonl, train.json; right is one of" in refusal(data, file=".")


def parquet_rows():
    image = {"bytes": png(picture(0)), "path": None}
    return [{"image": image, "problem": "?", "solution": "<answer>No Objects</answer>", "split": None}]


@pytest.mark.parametrize("name", ["rows.parquet", "data/train-00000-of-00002.parquet"])
def test_embedded_images_are_written_as_png(data, name):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    (data / name).parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(parquet_rows() * 2), data / name)
    rows = built(data, file=name.split("/")[0] if "/" not in name else ".", frame="norm1000")["train"]
    assert [row["row_id"] for row in rows] == ["row-000001", "row-000002"]
    [path] = {row["images"][0] for row in rows}  # equal images are stored once
    assert path.startswith("images/")
    stored = Image.open(data.parent / "run" / path)
    assert np.array_equal(np.asarray(stored), np.asarray(picture(0)))


def test_a_data_set_saved_by_datasets_is_read(data):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "problem": datasets.Value("string"), "solution": datasets.Value("string")}
    )
    good = {
        "image": {"bytes": png(picture(0)), "path": "x.png"},
        "problem": "?",
        "solution": "<answer>No Objects</answer>",
    }
    saved = datasets.Dataset.from_list([good], features=features)
    datasets.DatasetDict({"train": saved, "dev": saved}).save_to_disk(data / "saved")
    [row] = built(data, file="saved", frame="norm1000")["train"]
    assert (row["gold"], row["image_wh"]) == ([], [64, 48])
    assert "the split is 'test'; dataset.path" in refusal(data, file="saved", split="test")
    bad = {**good, "image": {"bytes": png(picture(0))[:500], "path": "x.png"}}
    datasets.Dataset.from_list([good, bad], features=features).save_to_disk(data / "one")
    assert "one/train, row 2: image 'x.png' is damaged" in refusal(data, file="one", frame="norm1000")


def test_nothing_but_the_hub_reaches_the_network(data, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(built(data, ROWS)["train"]) == 3


def test_the_hub_is_asked_for_what_was_named(data, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, *, split, revision):
        asked.append((name, split, revision))
        if split != "train":
            raise ValueError(f"Unknown split {split}")
        return datasets.Dataset.from_list([{**ROWS[0], "image": {"bytes": png(picture(0)), "path": None}}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = {"path": None, "hub": "someone/something", "revision": "abc"}
    assert len(built(data, **options)["train"]) == 1
    assert asked == [("someone/something", "train", "abc")]
    assert "dataset.hub=someone/something (split dev" in refusal(data, **options, split="dev")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([{**ROWS[0], "image": "a.png"}])
    )
    assert "set dataset.image_root" in refusal(data, **options)  # its paths never reach this machine's files


def images_of(rows) -> set:
    return {path for row in rows for path in row["images"]}


def test_splits_share_no_image(data):
    rows = [{"image": f"{n % 6}.png", "category": str(n), "gold": [[0, 0, 9, 9]]} for n in range(24)]
    splits = built(data, rows, n_validation=5, n_test=4)
    assert {split: len(part) for split, part in splits.items()} == {"train": 12, "validation": 8, "test": 4}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not images_of(splits[one]) & images_of(splits[other])
    assert splits == built(data, rows, n_validation=5, n_test=4)
    assert any(splits != built(data, rows, n_validation=5, n_test=4, seed=seed) for seed in (1, 2, 3))


def test_a_copy_under_another_name_is_the_same_image(data):
    for n in range(6):  # as BMP: other bytes, the same pixels
        picture(n).save(data / f"copy{n}.bmp")
    rows = [{"image": name, **BOX} for n in range(6) for name in (f"{n}.png", f"copy{n}.bmp")]
    splits = built(data, rows, n_validation=2, n_test=2)
    numbers = {split: {path[-5] for path in images_of(part)} for split, part in splits.items()}
    assert [len(numbers[split]) for split in ("train", "validation", "test")] == [4, 1, 1]
    assert len(set.union(*numbers.values())) == 6


def test_a_test_set_of_its_own_may_not_repeat_training_images(data):
    picture(0).save(data / "again.bmp")
    write_rows(data / "test.jsonl", [{"image": "3.png", **BOX}, {"image": "again.bmp", **BOX}])
    message = refusal(data, ROWS, test_path=str(data / "test.jsonl"))
    assert "row test-000002 of the test set shows the same image as row row-000001" in message
    write_rows(data / "test.jsonl", [{"image": "3.png", **BOX}, {"image": "4.png", **BOX}])
    splits = built(data, ROWS, test_path=str(data / "test.jsonl"), n_validation=1)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [2, 1, 2]
    assert len(built(data, ROWS, test_path=str(data / "test.jsonl"), n_test=1)["test"]) == 1


def test_few_shot_is_drawn_from_the_training_rows(data):
    splits = built(data, [{"image": f"{n}.png", **BOX} for n in range(6)], k_shot=3, n_test=1)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [3, 0, 1]

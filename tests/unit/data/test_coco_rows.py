"""COCO and LVIS annotations: rows counted by hand and by the official libraries, and every fault by its name."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vrft.data import load_builder
from vrft.data.class_names import LISTS, read_class_names
from vrft.data.coco_files import read_annotations
from vrft.data.splits import finish_manifest
from vrft.errors import UserError
from vrft.tasks import load_task

SHARED = Path(__file__).parents[4] / "shared" / "data"
COCO_FILE = SHARED / "coco" / "instances_val2014_100.json"
LVIS_FILE = SHARED / "lvis" / "lvis_val_100.json"
needs_shared = pytest.mark.skipif(not COCO_FILE.is_file(), reason="the shared real annotations are not on this machine")

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "wild_dog", "def": "a dog"}, {"id": 9, "name": "cow"}]


def box(number, image_id, category_id, bbox, **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": 1.0, **more}


def small_file() -> dict:
    """Image 1: two cats and a dog; 2: a crowd of cats and a dog; 5: nothing; 6: a cow. Outlines must not matter."""
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in (6, 1, 2, 5)]
    annotations = [
        box(1, 1, 3, [1, 2, 10, 12], iscrowd=0, segmentation=[[1, 2, 3, 4, 5, 6]]),
        box(2, 1, 3, [20.5, 3, 10, 12], segmentation={"counts": [1, 2], "size": [3, 4]}),
        box(3, 1, 7, [0, 0, 40.5, 30], iscrowd=0),  # half a pixel too wide: cut
        box(4, 2, 3, [0, 0, 40, 30], iscrowd=1),
        box(5, 2, 7, [5, 5, 5, 5]),
        box(6, 6, 9, [5, 5, 5, 6]),
        box(7, 6, 3, [5, 5, 0, 6]),  # no area, as two of COCO's
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": list(CATEGORIES)}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write(folder, contents, *, name="annotations.json", has_images=True) -> Path:
    (folder / name).write_text(contents if isinstance(contents, str) else json.dumps(contents))
    for number in (1, 2, 5, 6) if has_images else ():
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder / name


def built(path, *, task="detection", builder="coco", seed=0, out="out", labelled=None, **options):
    task = load_task(task) if labelled is None else load_task(task, labelled=labelled)
    build, out_dir = load_builder(builder), path.parent.parent / out
    usual = {} if "test_path" in options else {"n_test": 0}
    splits = build({"path": str(path), **usual, **options}, task=task, out_dir=out_dir, seed=seed)
    finish_manifest(out_dir)
    return splits


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        built(path, **options)
    return str(caught.value)


def asked(rows) -> dict:
    return {row["row_id"]: row["gold"] for row in rows}


def test_a_row_for_each_image_and_category(folder):
    rows = built(write(folder, small_file()))["train"]
    assert asked(rows) == {
        "1-3": [[1, 2, 11, 14], [20.5, 3, 30.5, 15]],
        "1-7": [[0, 0, 40, 30]],
        "2-7": [[5, 5, 10, 10]],
        "6-9": [[5, 5, 10, 11]],
    }
    assert rows[1] == {
        "row_id": "1-7",
        "images": [str(folder / "1.png")],
        "image_wh": [40, 30],
        "image_id": 1,
        "category_id": 7,
        "category": "wild_dog",
        "gold": [[0, 0, 40, 30]],
    }


def test_what_is_left_out_is_printed_and_recorded(folder, capsys):
    built(write(folder, small_file()))
    notes = json.loads((folder.parent / "out" / "manifest.json").read_text())["notes"]
    printed = capsys.readouterr().err
    for count, words in ((1, "were cut to it"), (1, "without area"), (1, "around crowds")):
        [note] = [note for note in notes if words in note]
        assert notes[note] == count
        assert f"dataset: {count} {note}" in printed


def test_labelled_rows_are_one_an_image(folder):
    rows = built(write(folder, small_file()), labelled=True)["train"]
    assert [(row["row_id"], row["categories"]) for row in rows] == [
        ("1", ["cat", "wild_dog"]),
        ("2", ["wild_dog"]),
        ("6", ["cow"]),
    ]
    assert rows[0]["gold"] == [
        {"label": "cat", "xyxy": [1, 2, 11, 14]},
        {"label": "cat", "xyxy": [20.5, 3, 30.5, 15]},
        {"label": "wild_dog", "xyxy": [0, 0, 40, 30]},
    ]
    rows = built(write(folder, small_file()), labelled=True, negatives=1)["train"]
    assert [(row["row_id"], len(row["categories"])) for row in rows] == [("1", 3), ("2", 2), ("5", 2), ("6", 2)]


def test_counting_counts_what_is_no_crowd(folder):
    rows = built(write(folder, small_file()), task="counting", negatives=0.5)["train"]
    golds = asked(rows)
    assert {name: golds[name] for name in ("1-3", "1-7", "2-7", "6-9")} == {"1-3": 2, "1-7": 1, "2-7": 1, "6-9": 1}
    assert sorted(golds.values()) == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("task", ["classification", "grounding", "pointing", "reasoning_grounding"])
def test_a_task_that_boxes_do_not_fit_is_refused_with_those_that_do(folder, task):
    words = f"task={task} has no rows in COCO or LVIS annotations, which hold boxes; tasks that fit: detection, open_"
    assert words in refusal(write(folder, small_file()), task=task)


@pytest.mark.parametrize(
    ("ratio", "n_negatives"),
    [(0, 0), (0.25, 1), (0.5, 2), (1, 5), (99, 6)],  # 1 and 2 have a cow to miss, 6 a dog, 5 all three
)
def test_negatives_are_categories_that_are_not_in_the_image(folder, ratio, n_negatives):
    path = write(folder, small_file())
    for seed in range(5):
        rows = built(path, negatives=ratio, seed=seed)["train"]
        negatives = [(row["image_id"], row["category"]) for row in rows if not row["gold"]]
        assert len(rows) - len(negatives) == 4
        assert len(negatives) == n_negatives
        empty = {(5, "cat"), (5, "wild_dog"), (5, "cow")}
        assert set(negatives) <= {(1, "cow"), (2, "cow"), (6, "wild_dog")} | empty


def test_negatives_depend_on_the_seed_alone(folder):
    contents = small_file()
    contents["categories"] = CATEGORIES + [{"id": n, "name": f"thing {n}"} for n in range(20, 60)]
    path = write(folder, contents)
    usual = built(path, negatives=2)
    for part in ("images", "annotations", "categories"):
        contents[part] = contents[part][::-1]
    # The boxes of one category keep the order of the file, which the draw does not depend on.
    swapped = built(write(folder, contents), negatives=2)
    assert [row["row_id"] for row in swapped["train"]] == [row["row_id"] for row in usual["train"]]
    assert [row["row_id"] for row in built(path, negatives=2, seed=1)["train"]] != [
        row["row_id"] for row in usual["train"]
    ]


def test_too_few_absent_categories_are_counted(folder, capsys):
    built(write(folder, small_file()), negatives=10)
    assert "dataset: 44 questions without an object could not be drawn" in capsys.readouterr().err


def test_distractors_are_the_other_boxes(folder):
    rows = built(write(folder, small_file()), distractors=True)["train"]
    assert {row["row_id"]: row["distractors"] for row in rows} == {
        "1-3": [[0, 0, 40, 30]],
        "1-7": [[1, 2, 11, 14], [20.5, 3, 30.5, 15]],
        "2-7": [],
        "6-9": [],
    }


def test_definitions_go_to_open_vocabulary_detection_alone(folder):
    path = write(folder, small_file())
    rows = built(path, task="open_vocabulary_detection")["train"]
    assert {row["category"]: row.get("definition") for row in rows} == {"cat": None, "wild_dog": "a dog", "cow": None}
    assert not any("definition" in row for row in built(path)["train"])


@pytest.mark.parametrize(
    ("options", "categories"),
    [
        ({"classes": ["cat", "Wild dog"]}, {"cat", "wild_dog"}),  # case and underscores do not matter
        ({"classes": "{folder}/names.txt"}, {"cow"}),
        ({"exclude_classes": ["cow"]}, {"cat", "wild_dog"}),
        ({"classes": ["cat", "cow"], "exclude_classes": ["cow"]}, {"cat"}),
    ],
)
def test_classes_choose_what_is_asked_for(folder, options, categories):
    (folder / "names.txt").write_text("\ncow")  # a blank line, and no newline at the end
    options = {key: value.format(folder=folder) if isinstance(value, str) else value for key, value in options.items()}
    path = write(folder, small_file())
    for negatives in (0, 1):
        assert {row["category"] for row in built(path, negatives=negatives, **options)["train"]} == categories


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ["cat", "wild_dgo"]}, "has 'wild_dgo', no category of annotations.json; did you mean 'wild_dog'?"),
        ({"classes": ["zebra"]}, "annotations.json has 3: cat, wild_dog, cow"),
        ({"classes": "coco_novel"}, "is 'coco_novel', no list and no file; a list of names, a file, or one of coco_b"),
        ({"classes": "../category_lists/coco_novel_15"}, "no list and no file"),
        ({"classes": "coco_novel_15"}, "dataset.classes has 'mouse'"),
        ({"classes": ["cow"], "exclude_classes": ["cow"]}, "leaves no category"),
        ({"classes": 3}, "dataset.classes is 3; a list of texts or a text or null is needed"),
        ({"classes": ["bear"], "test_classes": ["cow"]}, "test_classes is given, and dataset.test_path is null"),
        ({"negatives": -1}, "dataset.negatives is -1"),
        ({"negatives": "many"}, "dataset.negatives is 'many'; a number is needed"),
        ({"pathh": 1}, "dataset has no key 'pathh'; did you mean path? known: image_root, "),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(folder, options, words):
    assert words in refusal(write(folder, small_file()), **options)


def test_a_list_with_a_name_twice_is_refused(folder):
    (folder / "names.txt").write_text("cow\ncow\n")
    message = refusal(write(folder, small_file()), classes=str(folder / "names.txt"))
    assert "names.txt" in message
    assert "line 2: 'cow' is the class of line 1" in message


def changed(part, position, **values):
    """The small file with values of one entry set, or taken out by `...`."""
    contents = small_file()
    entry = contents[part][position] = {**contents[part][position], **values}
    for key in [key for key, value in values.items() if value is ...]:
        del entry[key]
    return contents


BAD_ENTRIES = [
    (changed("annotations", 0, image_id=77), "annotations[0] (id 1), image_id 77, category_id 3: image_id is 77"),
    (changed("annotations", 0, category_id=4), "annotations[0] (id 1), image_id 1, category_id 4: category_id is 4"),
    (changed("annotations", 0, image_id="1"), "image_id is '1', which is no image's id"),
    (changed("annotations", 0, image_id=True), "image_id is True, which is no image's id"),  # True == 1 in Python
    (changed("annotations", 0, image_id=...), "image_id is None"),
    (changed("annotations", 0, id="1"), "annotations[0]: id is '1'; a whole number is right"),
    (changed("annotations", 0, id=...), "annotations[0]: id is None"),
    (changed("annotations", 0, id=2), "annotations[1]: an earlier entry has the id 2 too"),
    (changed("annotations", 0, bbox=[1, 2, -3, 4]), "bbox is [1, 2, -3, 4], of negative size"),
    (changed("annotations", 0, bbox=[1, 2, 3]), "bbox is [1, 2, 3]; four finite numbers"),
    (changed("annotations", 0, bbox=[1, 2, 3, float("nan")]), "four finite numbers"),
    (changed("annotations", 0, bbox=[1, 2, 3, 10**400]), "four finite numbers"),
    (changed("annotations", 0, bbox=[1, 2, 3, "4"]), "four finite numbers"),
    (changed("annotations", 0, bbox=...), "bbox is None"),
    (changed("annotations", 0, bbox=[30, 2, 12, 4]), "leaves the image of 40 × 30 pixels by 2; up to 1 is cut off"),
    (changed("annotations", 0, bbox=[-1.5, 2, 12, 4]), "leaves the image of 40 × 30 pixels by 1.5"),
    (changed("annotations", 0, iscrowd="yes"), "iscrowd is 'yes'; 0 or 1"),
    (changed("images", 1, width=...), "images[1] (id 1): width is None; a whole number of pixels"),
    (changed("images", 1, height=30.5), "images[1] (id 1): height is 30.5"),
    (changed("images", 1, file_name=...), "file_name is None and coco_url None; one of them must name"),
    (changed("images", 1, id="1"), "images[1]: id is '1'; a whole number is right"),
    (changed("images", 1, id=2), "images[2]: an earlier entry has the id 2 too"),
    (changed("images", 1, width=41), "row 1-3: image_wh is [41, 30], but the upright image has [40, 30]"),
    (changed("images", 1, file_name="../secret.png"), "row 1-3: image '../secret.png'"),
    (changed("images", 1, file_name="gone.png"), "row 1-7: image 'gone.png' is missing"),
    (changed("categories", 0, name=""), "categories[0] (id 3): name is ''"),
    (changed("categories", 0, name="cow"), "categories[2] (id 9): category 3 has the name 'cow' too"),
    (changed("categories", 0, id=7), "categories[1]: an earlier entry has the id 7 too"),
    ({**small_file(), "annotations": [3]}, "annotations[0]: int found; an object is right"),
]  # fmt: skip


@pytest.mark.parametrize(("contents", "words"), BAD_ENTRIES)
def test_a_bad_entry_is_named(folder, contents, words):
    message = refusal(write(folder, contents))
    assert "annotations.json, " in message
    assert words in message


SKIPPED = [  # what is left of 1-3, 1-7, 2-7 and 6-9, where each wrong gold would be one object short
    (changed("annotations", 0, bbox=[1, 2, -3, 4]), {"1-7", "2-7", "6-9"}),
    (changed("annotations", 0, category_id=4), {"1-3", "1-7", "2-7", "6-9"}),  # whose it is cannot be known
    (changed("annotations", 0, id=...), {"1-7", "2-7", "6-9"}),
    (changed("images", 1, height=0), {"2-7", "6-9"}),
    (changed("images", 1, file_name="gone.png"), {"2-7", "6-9"}),
]


@pytest.mark.parametrize(("contents", "left"), SKIPPED)
def test_rows_of_a_bad_entry_are_left_out(folder, contents, left):
    rows = built(write(folder, contents), on_bad_row="skip", negatives=0)["train"]
    assert {row["row_id"] for row in rows} == left
    assert json.loads((folder.parent / "out" / "skipped.json").read_text())


def test_a_labelled_row_with_a_bad_annotation_is_left_out(folder):
    contents = changed("annotations", 0, bbox=[1, 2, -3, 4])
    rows = built(write(folder, contents), on_bad_row="skip", labelled=True)["train"]
    assert {row["row_id"] for row in rows} == {"2", "6"}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "holds a list; an object with images, categories, annotations is right (a list is for results)"),
        ("{}", "images is missing; a list with at least one entry is right"),
        ({**small_file(), "annotations": []}, "annotations is []"),
        ({**small_file(), "categories": {"1": "cat"}}, "categories is {'1': 'cat'}"),
    ],
)
def test_a_file_of_another_kind_is_named(folder, contents, words):
    message = refusal(write(folder, contents))
    assert "annotations.json" in message
    assert words in message


def test_a_file_that_is_not_there_or_no_text_is_named(folder):
    assert "dataset.path is" in refusal(folder / "gone.json")
    write(folder, small_file())
    (folder / "bytes.json").write_bytes(b'{"a": "\xff"}')
    assert "bytes.json: not UTF-8 (byte 7" in refusal(folder / "bytes.json")
    assert "dataset.test_path is" in refusal(folder / "annotations.json", test_path=str(folder / "gone.json"))


def test_base_and_novel_classes_have_their_own_files_and_folders(folder):
    other = folder.parent / "other"
    other.mkdir()
    contents = small_file()
    for entry in contents["images"]:
        entry["file_name"] = f"{entry['id'] + 10}.png"
        noise = np.random.default_rng(entry["id"] + 10).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(other / entry["file_name"])
    options = {"classes": ["cat", "cow"], "test_classes": ["wild_dog"], "test_image_root": str(other)}
    test_path = write(folder, contents, name="test.json")
    splits = built(write(folder, small_file()), test_path=str(test_path), image_root=str(folder), **options)
    assert asked(splits["train"]).keys() == {"1-3", "6-9"}
    assert asked(splits["test"]).keys() == {"test-1-7", "test-2-7"}
    assert {Path(row["images"][0]).parent for row in splits["test"]} == {other}


def federated_file() -> dict:
    """As LVIS v1 has it: no file_name. Image 1 may have more cats, 6 surely has no cat; of dogs nothing is known."""
    contents = small_file()
    lists = {1: ([9], [3]), 2: ([3], []), 5: ([3], []), 6: ([3], [])}
    for entry in contents["images"]:
        entry["coco_url"] = f"http://images.cocodataset.org/train2017/{entry['id']}.png"
        entry["neg_category_ids"], entry["not_exhaustive_category_ids"] = lists[entry["id"]]
        del entry["file_name"]
    contents["annotations"] = [entry for entry in contents["annotations"] if entry["id"] not in (4, 7)]
    return contents


def test_federated_images_are_asked_only_for_what_is_known(folder):
    path = write(folder, federated_file())
    rows = built(path, builder="lvis", negatives=10)["train"]
    assert asked(rows).keys() == {"1-3", "1-7", "1-9", "2-3", "2-7", "5-3", "6-3", "6-9"}
    assert [row["row_id"] for row in rows if not row["gold"]] == ["1-9", "2-3", "5-3", "6-3"]
    assert [row["row_id"] for row in rows if not row["is_exhaustive"]] == ["1-3"]
    assert "1-3" not in asked(built(path, builder="lvis", not_exhaustive=False)["train"])
    assert "1-3" not in asked(built(path, builder="lvis", task="counting")["train"])  # nobody knows how many


@pytest.mark.parametrize("place", ["train2017", "."])
def test_images_lie_where_the_end_of_coco_url_says(folder, place):
    path = write(folder, federated_file())
    for number in (1, 2, 5, 6):
        (folder / place).mkdir(exist_ok=True)
        (folder / f"{number}.png").rename(folder / place / f"{number}.png")
    rows = built(path, builder="lvis")["train"]
    assert {Path(row["images"][0]).parent for row in rows} == {folder / place}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"neg_category_ids": ...}, "images[0] (id 6): neg_category_ids is None; an LVIS image has a list"),
        ({"not_exhaustive_category_ids": 3}, "not_exhaustive_category_ids is 3"),
        ({"neg_category_ids": [3, 44]}, "neg_category_ids has 44, which is no category's id"),
        ({"neg_category_ids": ["3"]}, "neg_category_ids has '3'"),
        ({"coco_url": "6.png"}, "file_name is None and coco_url '6.png'"),
    ],
)
def test_a_bad_federated_image_is_named(folder, values, words):
    contents = federated_file()
    contents["images"][0].update(values)
    contents["images"][0] = {key: value for key, value in contents["images"][0].items() if value is not ...}
    assert words in refusal(write(folder, contents), builder="lvis")


def test_the_shipped_lists():
    lists = {path.stem: read_class_names(path.stem, key="classes") for path in sorted(LISTS.glob("*.txt"))}
    assert {name: len(names) for name, names in lists.items()} == {
        "coco_base_65": 65,
        "coco_few_shot_8": 8,
        "coco_novel_15": 15,
        "lvis_few_shot_6": 6,
        "lvis_open_vocabulary_13": 13,
    }
    assert not set(lists["coco_base_65"]) & set(lists["coco_novel_15"])
    readme = (LISTS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in lists)


def blank_images(file: Path, folder: Path) -> None:
    """An image of the right size for each of the file's, each of its own grey."""
    for number, entry in enumerate(json.loads(file.read_text())["images"]):
        Image.new("L", (entry["width"], entry["height"]), number).save(folder / entry["file_name"])


@needs_shared
def test_real_coco_has_the_rows_that_pycocotools_counts(folder):
    coco = pytest.importorskip("pycocotools.coco").COCO(str(COCO_FILE))
    blank_images(COCO_FILE, folder)
    options = {"image_root": str(folder), "n_processes": 1}
    path = Path(folder / "x.json")
    path.write_bytes(COCO_FILE.read_bytes())
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    boxes = {(entry["image_id"], names[entry["category_id"]]): [] for entry in coco.loadAnns(coco.getAnnIds(iscrowd=0))}
    for entry in coco.loadAnns(coco.getAnnIds(iscrowd=0)):
        x, y, width, height = entry["bbox"]
        boxes[entry["image_id"], names[entry["category_id"]]].append([x, y, x + width, y + height])
    assert (len(coco.getAnnIds()), sum(map(len, boxes.values()))) == (839, 830)
    rows = built(path, **options)["train"]
    found = {(row["image_id"], row["category"]): row["gold"] for row in rows}
    assert len(found) == len(rows) == len(boxes) == 310
    for pair, gold in boxes.items():
        assert np.allclose(sorted(found[pair]), sorted(gold), atol=1e-6)
    counts = {
        (row["image_id"], row["category"]): row["gold"] for row in built(path, task="counting", **options)["train"]
    }
    crowded = {(entry["image_id"], names[entry["category_id"]]) for entry in coco.loadAnns(coco.getAnnIds(iscrowd=1))}
    assert counts == {pair: len(gold) for pair, gold in boxes.items() if pair not in crowded}
    assert len(boxes) - len(counts) == 9
    labelled = built(path, labelled=True, **options)["train"]
    assert sum(len(row["gold"]) for row in labelled) == 830
    assert {row["image_id"] for row in labelled} == {image_id for image_id, _ in boxes}
    asked_for = built(path, negatives=1.5, **options)["train"]
    negatives = {(row["image_id"], row["category"]) for row in asked_for if not row["gold"]}
    present = {(entry["image_id"], names[entry["category_id"]]) for entry in coco.dataset["annotations"]}
    assert len(negatives) == 465
    assert not negatives & present
    novel = built(path, classes="coco_novel_15", **options)["train"]
    base = built(path, classes="coco_base_65", **options)["train"]
    assert len(novel) + len(base) == len(rows)
    assert len({row["category"] for row in novel}) == 11  # as the shared README counts
    assert len({row["category"] for row in built(path, classes="coco_few_shot_8", **options)["train"]}) == 7


@needs_shared
def test_real_lvis_has_the_rows_that_its_library_counts(folder, monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)
    lvis = pytest.importorskip("lvis").LVIS(str(LVIS_FILE))
    blank_images(LVIS_FILE, folder)
    names = {number: category["name"] for number, category in lvis.cats.items()}
    counts = Counter((entry["image_id"], names[entry["category_id"]]) for entry in lvis.anns.values())
    path = Path(folder / "x.json")
    path.write_bytes(LVIS_FILE.read_bytes())
    options = {"builder": "lvis", "image_root": str(folder), "n_processes": 1}
    rows = built(path, **options)["train"]
    assert {(row["image_id"], row["category"]): len(row["gold"]) for row in rows} == dict(counts)
    assert sum(counts.values()) == 977
    loose = {
        (image_id, names[number])
        for image_id, image in lvis.imgs.items()
        for number in image["not_exhaustive_category_ids"]
    }
    assert {(row["image_id"], row["category"]) for row in rows if not row["is_exhaustive"]} == loose & counts.keys()
    assert len(built(path, task="counting", **options)["train"]) == len(counts.keys() - loose)
    known = {(image_id, names[number]) for image_id, image in lvis.imgs.items() for number in image["neg_category_ids"]}
    rows = built(path, negatives=0.5, **options)["train"]
    negatives = {(row["image_id"], row["category"]) for row in rows if not row["gold"]}
    annotated = {entry["image_id"] for entry in lvis.anns.values()}
    n_empty = sum(number not in annotated and bool(image["neg_category_ids"]) for number, image in lvis.imgs.items())
    assert (n_empty, len(negatives)) == (3, round(0.5 * (len(counts) + n_empty)))
    assert negatives <= known


@needs_shared
def test_the_real_photographs_have_their_annotations(folder):
    file = SHARED / "images" / "panoptic_coco_detection_format.json"
    path = folder / "x.json"
    path.write_bytes(file.read_bytes())
    rows = built(path, image_root=str(SHARED / "images"))["train"]
    entries = json.loads(file.read_text())["annotations"]
    pairs = {(entry["image_id"], entry["category_id"]) for entry in entries if not entry["iscrowd"]}
    assert {(row["image_id"], row["category_id"]) for row in rows} == pairs
    assert sum(len(row["gold"]) for row in rows) == sum(not entry["iscrowd"] for entry in entries)


def test_shots_bring_their_negatives(folder):
    path = write(folder, small_file())
    shots = built(path, k_shot=1, negatives=1)["train"]
    assert Counter(row["category"] for row in shots if row["gold"]) == {"cat": 1, "wild_dog": 1, "cow": 1}
    assert Counter(row["category"] for row in shots if not row["gold"]) == {"wild_dog": 1, "cow": 1}
    assert "wild_dog: 2 rows" in refusal(path, k_shot=3)


def crowded_file(folder, n_images, n_annotations) -> Counter:
    """Write images and annotations with outlines, at random; how many boxes each (image, category) has."""
    rng = np.random.default_rng(0)
    (folder / "tiny").mkdir()
    images = []
    for number in range(1, n_images + 1):
        noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "tiny" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"tiny/{number}.jpg", "width": 16, "height": 12})
    pairs = list(zip(rng.integers(1, n_images + 1, n_annotations), rng.integers(1, 81, n_annotations), strict=True))
    annotations = [
        box(number, int(image), int(category), [1.25, 2, 8.5, 6], segmentation=[rng.uniform(0, 640, 46).tolist()])
        for number, (image, category) in enumerate(pairs)
    ]
    categories = [{"id": number, "name": f"thing {number}"} for number in range(1, 81)]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "crowded.json").write_text(json.dumps(contents))
    return Counter(f"{image}-{category}" for image, category in pairs)


def test_a_long_build_is_right_and_its_outlines_take_no_memory(folder):
    counts = crowded_file(folder, 400, 3000)
    rows = built(folder / "crowded.json", n_processes=2)["train"]
    assert {row["row_id"]: len(row["gold"]) for row in rows} == dict(counts)
    peaks = []
    for read in (
        lambda: json.loads((folder / "crowded.json").read_text()),
        lambda: read_annotations(folder / "crowded.json", key="path", is_federated=False, faults=[], notes={}),
    ):
        tracemalloc.start()
        held = read()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        del held
    assert peaks[1] < 0.75 * peaks[0]

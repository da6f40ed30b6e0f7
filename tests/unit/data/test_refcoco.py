"""RefCOCO: a row a sentence, boxes from the annotations, and pickles that name anything are refused."""

import json
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from PIL import Image

from vrft.data.refcoco import Options, build, read, read_refs
from vrft.errors import UserError
from vrft.tasks import load_task


def ref(number, split="train", image_id=1, *, sents=("the left one",), **more):
    sentences = [
        {"sent_id": n, "sent": sent, "raw": sent.title(), "tokens": sent.split()} for n, sent in enumerate(sents)
    ]
    return {
        "ref_id": number,
        "ann_id": number + 100,
        "image_id": image_id,
        "split": split,
        "category_id": 1,
        "file_name": f"COCO_train2014_00000000000{image_id}_{number}.jpg",  # no such file
        "sentences": sentences,
        **more,
    }


REFS = [
    ref(1, sents=("the left one", "cup on the left")),
    ref(2),
    ref(3, "val", 2),
    ref(4, "testA", 3, sents=("man", "him", "he")),
    ref(5, "testB", 4),
]


@pytest.fixture
def coco(tmp_path):
    """A folder with the refs, four images, and their annotations 101 to 105."""
    folder = tmp_path / "refcoco"
    folder.mkdir()
    images, annotations = [], []
    for number in range(1, 5):
        name = f"COCO_train2014_00000000000{number}.jpg"
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
        images.append({"id": number, "width": 64, "height": 48, "file_name": name})
    for number, image_id in zip(range(101, 106), (1, 1, 2, 3, 4), strict=True):
        box = [2.5, 3, 10, 20.25] if number != 105 else [40, 30, 24.5, 18]  # half a pixel outside
        annotations.append({"id": number, "image_id": image_id, "bbox": box, "segmentation": [[1, 2, 3, 4, 5, 6]]})
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(REFS))
    return folder


def rows_of(folder, *, name="refs(unc).p", is_test=False, **options):
    faults = []
    located, _ = read(Options(path=str(folder / name), **options), is_test=is_test, faults=faults)
    return [columns for _, _, columns in located], faults


def built(folder, *, task="grounding", **options):
    options = {"path": str(folder / "refs(unc).p"), "n_processes": 1, **options}
    return build(options, task=load_task(task), out_dir=folder.parent / "run", seed=0)


@pytest.mark.parametrize("task", ["grounding", "reasoning_grounding", "pointing"])
def test_a_row_for_each_sentence(coco, task):
    splits = built(coco, task=task, test_split="testB")
    shared = {"image_wh": [64, 48], "image_id": 1, "gold": [2.5, 3, 12.5, 23.25]}
    shared["images"] = [str(coco / "COCO_train2014_000000000001.jpg")]
    assert splits["train"] == [
        {"row_id": "1-1", "phrase": "the left one", **shared},
        {"row_id": "1-2", "phrase": "cup on the left", **shared},
        {"row_id": "2-1", "phrase": "the left one", **shared},
    ]
    assert [(row["row_id"], row["gold"]) for row in splits["test"]] == [("5-1", [40, 30, 64, 48])]


@pytest.mark.parametrize(("split", "n_rows"), [("train", 3), ("val", 1), ("testA", 3), ("testB", 1)])
def test_every_split_is_read_as_pickle_and_as_json(coco, split, n_rows):
    (coco / "refs.json").write_text(json.dumps(REFS))
    rows, faults = rows_of(coco, split=split)
    assert (len(rows), faults) == (n_rows, [])
    assert rows_of(coco, name="refs.json", split=split) == (rows, [])
    assert rows_of(coco, split="train", test_split=split, is_test=True) == (rows, [])


def test_the_phrase_may_be_the_raw_one(coco):
    assert [row["phrase"] for row in rows_of(coco, text="raw")[0]] == [
        "The Left One",
        "Cup On The Left",
        "The Left One",
    ]
    with pytest.raises(UserError, match=r"dataset\.text is 'tokens'; sent or raw is needed"):
        built(coco, text="tokens")


def test_a_split_that_is_not_there_is_named(coco):
    with pytest.raises(
        UserError, match=r"the split is 'test', .* of the splits testA \(1\), testB \(1\), train \(2\), val"
    ):
        rows_of(coco, split="test")


def test_a_split_that_shares_images_with_the_training_is_refused(coco):
    refs = [ref(1), ref(2, "val")]  # as the google split of RefCOCOg has it
    (coco / "refs(unc).p").write_bytes(pickle.dumps(refs))
    with pytest.raises(UserError, match="row 2-1 of the test set shows the same image as row 1-1"):
        built(coco, test_split="val")


BAD_REFS = [
    (3, "ref_id is None"),
    (ref(10, ref_id="10"), "ref_id is '10'; a whole number"),
    (ref(1), "an earlier row has its ref_id too"),
    (ref(11, ann_id=999), "(ref_id 11): ann_id is 999; instances has no such annotation"),
    (ref(12, ann_id=True), "ann_id is True; a whole number"),
    (ref(13, ann_id=102, image_id=99), "image_id is 99; instances has no such image"),
    (ref(14, ann_id=102, image_id=2), "image_id is 2, and its annotation 102 is of image 1"),
    (ref(15, ann_id=102, split=None), "split is None"),
    (ref(16, ann_id=102, sents=()), "sentences is a list; a list of at least one"),
    (ref(17, ann_id=102, sents=("x", " ")), "sentence 2 has the sent ' '; a text is needed"),
    (ref(18, ann_id=102, sentences=["x"]), "sentence 1 has the sent None"),
]


def test_a_bad_ref_is_named(coco):
    (coco / "refs(unc).p").write_bytes(pickle.dumps([*REFS, *(bad for bad, _ in BAD_REFS)]))
    rows, faults = rows_of(coco)
    assert len(rows) == 3
    assert len(faults) == len(BAD_REFS)
    for number, ((_, words), fault) in enumerate(zip(BAD_REFS, faults, strict=True), 6):
        assert fault.startswith(f"refs(unc).p, row {number}")
        assert words in fault


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bbox": [1, 2, 3]}, "annotation 102 has the bbox [1, 2, 3]; four finite numbers"),
        ({"bbox": None}, "annotation 102 has the bbox None"),
        ({"bbox": [1, 2, float("nan"), 4]}, "four finite numbers"),
        ({"bbox": [10, 10, -5, 5]}, "row 2: box [10, 10, 5, 15] has no area"),
        ({"bbox": [10, 10, 60, 5]}, "row 2: box [10, 10, 70, 15] lies outside the image of 64 × 48"),
    ],
)
def test_a_bad_box_is_named(coco, change, words):
    held = json.loads((coco / "instances.json").read_text())
    held["annotations"][1].update(change)
    (coco / "instances.json").write_text(json.dumps(held))
    with pytest.raises(UserError) as caught:
        built(coco)
    assert words in str(caught.value)
    assert "row 1" not in str(caught.value)


class Payload:
    """Unpickled with trust, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_by_name(coco, protocol):
    refs = coco / "refs(unc).p"
    refs.write_bytes(pickle.dumps([*REFS, Payload(coco / "ran")], protocol))
    with pytest.raises(
        UserError, match=r"refs\(unc\)\.p cannot be read as .* it names (posix|nt)\.mkdir, which could run code"
    ):
        rows_of(coco)
    assert not (coco / "ran").exists()
    pickle.loads(refs.read_bytes())
    assert (coco / "ran").exists(), "the payload works where it is let"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps([OrderedDict(a=1)]), "it names collections.OrderedDict"),
        (pickle.dumps([np.int64(3)]), "it names numpy"),
        (b"cposix\nsystem\n(S'true'\ntR.", "it names posix.system"),
        (b"c__builtin__\neval\n.", "it names __builtin__.eval"),  # as Python 2 wrote it
        (b"Pall\n.", "refers to something outside"),
        (b"", "Ran out of input"),
        (pickle.dumps(REFS)[:-50], "cannot be read as a pickle"),
        (b"<html>", "cannot be read as a pickle"),
        (pickle.dumps({}), "holds nothing; a list of refs"),
        (pickle.dumps({"a": 1}), "holds a dict; a list of refs"),
        (pickle.dumps([]), "holds nothing"),
    ],
)
def test_other_files_are_refused(coco, content, words):
    (coco / "refs(unc).p").write_bytes(content)
    with pytest.raises(UserError) as caught:
        rows_of(coco)
    assert words in str(caught.value)


def test_a_pickle_of_python_2_is_read(tmp_path):
    old = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsS'ref_id'\np4\nL7L\nsa."  # a str of bytes, and a long
    (tmp_path / "refs.p").write_bytes(old)
    assert read_refs(tmp_path / "refs.p", key="dataset.path") == [{"sent": "café", "ref_id": 7}]
    (tmp_path / "refs.p").write_bytes(old.replace(b"\\xe9", b"\\xc3\\xa9"))
    assert read_refs(tmp_path / "refs.p", key="dataset.path") == [{"sent": "café", "ref_id": 7}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"dataset\.instances is .*instances\.json: there is no such file"),
        ("[", r"instances\.json: not JSON"),
        ("[]", "holds a list; an object with images, annotations is right"),
        ('{"images": [{"width": 3}], "annotations": []}', r"instances\.json, images\[0\]: id is None; a whole number"),
        (
            '{"images": [], "annotations": [{"id": 1}, {"id": 1}]}',
            r"annotations\[1\]: an earlier entry has the id 1 too",
        ),
    ],
)
def test_annotations_that_cannot_be_used_are_refused(coco, content, words):
    (coco / "instances.json").unlink()
    if content is not None:
        (coco / "instances.json").write_text(content)
    with pytest.raises(UserError, match=words):
        rows_of(coco)


def test_another_task_is_refused(coco):
    with pytest.raises(UserError, match="task=detection has no rows in RefCOCO; right are grounding"):
        built(coco, task="detection")

"""Class folders, lists of labelled images, and the published layouts: what is read, and what is refused by name."""

import contextlib
import os
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vrft.data.class_names import read_class_names
from vrft.data.folders import LAYOUTS, Options, build, read
from vrft.errors import UserError
from vrft.tasks import load_task

REAL = Path(__file__).parents[4] / "shared" / "data" / "visual_rft"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the original's lists (../shared/data/visual_rft) are absent")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def rows_of(path, *, is_test=False, **options):
    """The columns of every row, and what was wrong."""
    faults = []
    located, _ = read(Options(path=str(path), **options), is_test=is_test, faults=faults)
    return [columns for _, _, columns in located], faults


def labels(path, **options):
    rows, faults = rows_of(path, **options)
    assert faults == []
    return {row["image"]: row["gold"] for row in rows}


def built(path, tmp_path, **options):
    task = load_task("classification")
    return build({"path": str(path), "n_processes": 1, **options}, task=task, out_dir=tmp_path / "run", seed=0)


@pytest.fixture
def animals(tmp_path):
    """Three cats (one of them deeper down) and two dogs, hidden files beside them."""
    for seed, name in enumerate(
        ("Maine_Coon/1.jpg", "Maine_Coon/2.PNG", "Maine_Coon/old/1.jpg", "dog/1.jpg", "dog/2.bmp")
    ):
        picture(tmp_path / "animals" / name, seed)
    for name in (".DS_Store", "dog/.hidden.jpg", "dog/Thumbs.db", ".git/x.jpg"):
        (tmp_path / "animals" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "animals" / name).write_bytes(b"x")
    return tmp_path / "animals"


def test_the_folder_is_the_class(animals):
    coon = {f"Maine_Coon/{name}": "Maine Coon" for name in ("1.jpg", "2.PNG", "old/1.jpg")}
    assert labels(animals) == {**coon, "dog/1.jpg": "dog", "dog/2.bmp": "dog"}
    assert labels(animals, blank_underscores=False)["Maine_Coon/1.jpg"] == "Maine_Coon"


def test_classes_may_be_several_folders_deep(tmp_path):
    for seed, name in enumerate(("pets/dog/1.jpg", "pets/cat/1.jpg", "pets/1.jpg")):
        picture(tmp_path / "x" / name, seed)
    rows, faults = rows_of(tmp_path / "x", class_depth=2)
    assert [row["gold"] for row in rows] == ["pets/cat", "pets/dog"]
    assert faults == ["pets/1.jpg lies in no class folder; right is CLASS/CLASS/1.jpg"]


def test_splits_that_are_folders_are_used_and_others_are_cut(animals, tmp_path):
    splits = built(animals, tmp_path, split="train", test_split="test", n_test=1, n_validation=1)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3, "validation": 1, "test": 1}
    for seed, name in enumerate(("train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg")):
        picture(tmp_path / "parts" / name, seed)
    splits = built(tmp_path / "parts", tmp_path, split="train", test_split="test")
    assert [row["row_id"] for row in splits["train"]] == ["train/cat/1.jpg", "train/dog/1.jpg"]
    assert [(row["row_id"], row["gold"]) for row in splits["test"]] == [("test/cat/1.jpg", "cat")]
    with pytest.raises(UserError, match="has the parts train, test, and the split is 'trian'"):
        built(tmp_path / "parts", tmp_path, split="trian")


def test_a_test_set_in_another_place(animals, tmp_path):
    picture(tmp_path / "more" / "dog" / "1.jpg", 77)
    splits = built(animals, tmp_path, test_path=str(tmp_path / "more"), candidates=True)
    assert [row["row_id"] for row in splits["test"]] == ["test:dog/1.jpg"]
    assert {tuple(row["candidates"]) for row in splits["train"]} == {("Maine Coon", "dog")}


def test_few_shots_of_folders(animals, tmp_path):
    splits = built(animals, tmp_path, k_shot=2)
    assert Counter(row["gold"] for row in splits["train"]) == {"Maine Coon": 2, "dog": 2}


def test_faults_of_folders_are_named_together(animals):
    for seed, name in enumerate(("dog/1.png", "stray.jpg", "maine coon/9.jpg")):
        picture(animals / name, 100 + seed)
    (animals / "dog" / "notes.txt").write_text("hello")
    (animals / "empty").mkdir()
    rows, faults = rows_of(animals)
    assert len(rows) == 6
    for words in (
        "dog/1.png and dog/1.jpg differ only in their suffixes",
        "stray.jpg lies in no class folder; right is CLASS/stray.jpg",
        "dog/notes.txt is no image file",
        "the class folder empty is empty",
        "the class folders 'Maine_Coon' and 'maine coon' are the same class",
    ):
        assert sum(words in fault for fault in faults) == 1, words
    assert len(faults) == 5


def test_links_are_followed_once_and_left_to_the_image_reader(animals, tmp_path):
    picture(tmp_path / "elsewhere" / "1.jpg", 50)
    (animals / "fox").symlink_to(tmp_path / "elsewhere")
    (animals / "dog" / "round").symlink_to(animals / "dog")  # no endless walk
    assert labels(animals)["fox/1.jpg"] == "fox"
    with pytest.raises(UserError, match=r"fox/1\.jpg, row 1: image 'fox/1\.jpg' is .* outside of") as caught:
        built(animals, tmp_path)
    assert str(caught.value).count("row 1") == 1


def test_a_damaged_image_is_named(animals, tmp_path):
    (animals / "dog" / "2.bmp").write_bytes(b"")
    with pytest.raises(UserError, match=r"dog/2\.bmp, row 1: image 'dog/2\.bmp' is empty"):
        built(animals, tmp_path)
    splits = built(animals, tmp_path, on_bad_row="skip", n_test=0)
    assert len(splits["train"]) == 4


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no class folders; right is none/CLASS/NAME"):
        rows_of(tmp_path / "none")
    with pytest.raises(UserError, match=r"dataset\.path is '.*nowhere': there is no such folder"):
        rows_of(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("cat\ndog", None),  # no final newline, as in the original's files
        ("cat\r\ndog\r\n", None),
        ("\ufeffcat\ndog\n", None),
        ("cat\n\ndog\n", "line 2 is blank"),
        ("cat\ndog\n\n", "line 3 is blank"),
        ("Maine_Coon\ndog\nmaine coon", r"line 3: 'maine coon' is the class of line 1 \('Maine_Coon'\)"),
        ("", "names no class"),
        (b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_class_lists(tmp_path, content, words):
    (tmp_path / "classes.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    if words is None:
        assert read_class_names(str(tmp_path / "classes.txt"), key="dataset.classes", is_numbered=True) == [
            "cat",
            "dog",
        ]
        return
    with pytest.raises(UserError, match=words):
        read_class_names(str(tmp_path / "classes.txt"), key="dataset.classes", is_numbered=True)


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "classes.txt").write_text("big cat\nhot_dog")
    return str(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "a.jpg 0\nb.jpg big cat\nc.jpg 1\n"),
        ("list.txt", "a.jpg\t0\nb.jpg\tbig cat\nc.jpg\thot dog"),  # a name as answers are compared
        ("list.csv", 'image,label\r\na.jpg,0\r\n"b.jpg",Big Cat\r\nc.jpg,"1"\r\n'),
        ("list.txt", "a.jpg   0\n\nb.jpg  BIG_cat \nc.jpg 1"),
    ],
)
def test_lists_of_images(tmp_path, classes, name, text):
    (tmp_path / name).write_bytes(text.encode())
    found = labels(tmp_path / name, layout="list", classes=classes)
    assert found == {"a.jpg": "big cat", "b.jpg": "big cat", "c.jpg": "hot_dog"}


def test_a_list_without_classes_has_names_and_no_numbers(tmp_path, classes):
    (tmp_path / "list.txt").write_text("a.jpg sea lion\nb.jpg elk")
    assert labels(tmp_path / "list.txt", layout="list") == {"a.jpg": "sea lion", "b.jpg": "elk"}
    (tmp_path / "list.txt").write_text("a.jpg elk\nb.jpg 1")
    with pytest.raises(UserError, match=r"list\.txt, row 2: the label is the number 1; dataset\.classes"):
        rows_of(tmp_path / "list.txt", layout="list")
    (tmp_path / "list.txt").write_text("a.jpg 1\nb.jpg 2")
    assert labels(tmp_path / "list.txt", layout="list", classes=classes, first_label=1) == {
        "a.jpg": "big cat",
        "b.jpg": "hot_dog",
    }


def test_faults_of_lists_name_the_line(tmp_path, classes):
    (tmp_path / "list.txt").write_text("a.jpg 0\nb.jpg 2\nc.jpg lion\na.jpg 1\nd.jpg\ne.jpg -1\n")
    rows, faults = rows_of(tmp_path / "list.txt", layout="list", classes=classes)
    assert [row["image"] for row in rows] == ["a.jpg"]
    for words in (
        "row 2: label 2 is unknown; the classes have the numbers 0 to 1",
        "row 3: the class 'lion' is not among the 2 classes (big cat, hot_dog, …)",
        "row 4: the image 'a.jpg' is that of row 1",
        "row 5: 'd.jpg' is not an image and a label",
        "row 6: the class '-1' is not among",
    ):
        assert sum(f"list.txt, {words}" in fault for fault in faults) == 1, words
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        rows_of(tmp_path / "list.txt", layout="list")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.jpg," + "9" * 5000, "is not among the 2 classes"),  # Python reads no such number
        ("a" * 200_000 + ",0", "is not an image and a label"),  # longer than a field of csv may be
        ("a\rb.jpg,0", "is not an image and a label"),
    ],
)
def test_a_line_that_python_itself_refuses_is_named(tmp_path, classes, line, words):
    (tmp_path / "list.txt").write_bytes(f"b.jpg,1\n{line}\n".encode())
    rows, faults = rows_of(tmp_path / "list.txt", layout="list", classes=classes)
    assert [row["image"] for row in rows] == ["b.jpg"]
    assert len(faults) == 1
    assert faults[0].startswith("list.txt, row 2: ")
    assert words in faults[0]


def test_a_pth_list_is_read_without_code(tmp_path, classes):
    torch = pytest.importorskip("torch")
    entries = [
        {"/far/away/a.jpg": {"label": torch.tensor(1), "pred_class": torch.tensor([0, 1])}},
        {"/far/away/b.jpg": {"label": 0}},
        {"c": 3},
        {"/far/away/d.jpg": {"label": 7}},
    ]
    torch.save(entries, tmp_path / "list.pth")
    rows, faults = rows_of(tmp_path / "list.pth", layout="list", classes=classes, path_parts=1)
    assert [(row["image"], row["gold"], row.get("prediction")) for row in rows] == [
        ("a.jpg", "hot_dog", "big cat"),
        ("b.jpg", "big cat", None),
    ]
    assert [fault.partition(":")[0] for fault in faults] == ["list.pth, row 3", "list.pth, row 4"]
    torch.save({"a": 1}, tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a dict; a list of"):
        rows_of(tmp_path / "list.pth", layout="list", classes=classes)


class Payload:
    """Unpickled with trust, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pth_that_would_run_code_is_refused(tmp_path, classes):
    torch = pytest.importorskip("torch")
    torch.save([Payload(tmp_path / "ran")], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"names \S*mkdir, which is code"):
        rows_of(tmp_path / "list.pth", layout="list", classes=classes)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the payload works where it is let"


@needs_real
@pytest.mark.parametrize(("name", "n_rows", "n_right"), [("fgvc_aircraft", 3333, 823), ("oxford_flowers", 2463, 1736)])
def test_the_originals_lists_are_read_as_they_are(name, n_rows, n_right):
    pytest.importorskip("torch")
    options = {"layout": "list", "classes": str(REAL / f"{name}.txt"), "path_parts": 2}
    rows, faults = rows_of(REAL / f"{name}.pth", **options)
    assert (len(rows), faults) == (n_rows, [])
    assert sum(row["prediction"] == row["gold"] for row in rows) == n_right
    assert {len(Path(row["image"]).parts) for row in rows} == {2}


def make_flowers(path: Path) -> None:
    for number in range(1, 7):
        picture(path / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(path / "imagelabels.mat", {"labels": np.array([[1, 2, 3, 1, 2, 3]], np.uint8)})
    savemat(path / "setid.mat", {"trnid": np.array([[5, 1, 3]]), "valid": np.array([[2]]), "tstid": np.array([[4, 6]])})
    (path / "names.txt").write_text("pink primrose\nsweet pea\ntiger lily")


def make_aircraft(path: Path) -> None:
    (path / "data").mkdir(parents=True)
    for number in ("0034309", "1025794", "0056978"):
        picture(path / "data" / "images" / f"{number}.jpg", int(number))
    for level, names in (
        ("variant", ("707-320", "Boeing 717", "Boeing 717")),
        ("manufacturer", ("Boeing", "McDonnell Douglas", "Boeing")),
    ):
        (path / "data" / f"{level}s.txt").write_text("\n".join(dict.fromkeys(names)) + "\n")
        lines = [f"{n} {name}\n" for n, name in zip(("0034309", "1025794", "0056978"), names, strict=True)]
        (path / "data" / f"images_{level}_train.txt").write_text("".join(lines[:2]))
        (path / "data" / f"images_{level}_test.txt").write_text(lines[2])


def make_cars(path: Path) -> None:
    (path / "devkit").mkdir(parents=True)
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], dtype=object)
    savemat(path / "devkit" / "cars_meta.mat", {"class_names": names})
    kind = [("bbox_x1", object), ("class", object), ("fname", object)]
    train = np.array([[(1, 2, "00001.jpg"), (1, 1, "00002.jpg")]], dtype=kind)
    test = np.array([[(1, 2, "00001.jpg")]], dtype=kind)
    savemat(path / "devkit" / "cars_train_annos.mat", {"annotations": train})
    savemat(path / "cars_test_annos_withlabels.mat", {"annotations": test})
    for seed, name in enumerate(("cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg")):
        picture(path / name, seed)


def make_pets(path: Path) -> None:
    (path / "annotations").mkdir(parents=True)
    for seed, name in enumerate(("american_bulldog_10", "Abyssinian_1", "Abyssinian_2")):
        picture(path / "images" / f"{name}.jpg", seed)
    (path / "annotations" / "trainval.txt").write_text("american_bulldog_10 2 2 1\nAbyssinian_1 1 1 1\n")
    (path / "annotations" / "test.txt").write_text("#Image CLASS-ID SPECIES BREED ID\nAbyssinian_2 1 1 1\n")


PUBLISHED = [
    (
        "flowers", make_flowers, {"classes": "names.txt"},
        {f"jpg/image_0000{n}.jpg": name for n, name in ((1, "pink primrose"), (3, "tiger lily"), (5, "sweet pea"))},
        {"jpg/image_00004.jpg": "pink primrose", "jpg/image_00006.jpg": "tiger lily"},
    ),
    (
        "aircraft", make_aircraft, {},
        {"data/images/0034309.jpg": "707-320", "data/images/1025794.jpg": "Boeing 717"},
        {"data/images/0056978.jpg": "Boeing 717"},
    ),
    (
        "aircraft", make_aircraft, {"level": "manufacturer"},
        {"data/images/0034309.jpg": "Boeing", "data/images/1025794.jpg": "McDonnell Douglas"},
        {"data/images/0056978.jpg": "Boeing"},
    ),
    (
        "cars", make_cars, {},
        {"cars_train/00001.jpg": "Acura RL Sedan 2012", "cars_train/00002.jpg": "AM General Hummer SUV 2000"},
        {"cars_test/00001.jpg": "Acura RL Sedan 2012"},
    ),
    (
        "pets", make_pets, {"split": "trainval"},
        {"images/american_bulldog_10.jpg": "american bulldog", "images/Abyssinian_1.jpg": "Abyssinian"},
        {"images/Abyssinian_2.jpg": "Abyssinian"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "make", "options", "train", "test"), PUBLISHED)
def test_published_layouts(tmp_path, layout, make, options, train, test):
    make(tmp_path / "set")
    options = {"layout": layout, "split": "train", "test_split": "test", **options}
    if "classes" in options:
        options["classes"] = str(tmp_path / "set" / options["classes"])
    assert labels(tmp_path / "set", **options) == train
    assert labels(tmp_path / "set", is_test=True, **options) == test
    splits = built(tmp_path / "set", tmp_path, **options)
    assert [len(splits[split]) for split in ("train", "test")] == [len(train), len(test)]


def test_every_layout_is_tested():
    assert {layout for layout, *_ in PUBLISHED} | {"folders", "list"} == set(LAYOUTS)


def break_setid(path):
    savemat(path / "setid.mat", {"train": np.array([[1]])})


def break_mat(path):
    (path / "imagelabels.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 40)


def hide_labels(path):
    unlabelled = np.array([[(1, "00001.jpg")]], dtype=[("bbox_x1", object), ("fname", object)])
    savemat(path / "cars_test_annos_withlabels.mat", {"annotations": unlabelled})


@pytest.mark.parametrize(
    ("layout", "make", "break_it", "options", "words"),
    [
        ("flowers", make_flowers, break_setid, {}, r"setid\.mat has no variable 'trnid'; it holds train"),
        ("flowers", make_flowers, break_mat, {}, r"imagelabels\.mat cannot be read as a MATLAB file"),
        ("flowers", make_flowers, lambda path: None, {"split": "trainval"}, "flowers have train, val and test"),
        ("aircraft", make_aircraft, lambda path: None, {"split": "dev"}, r"images_variant_dev\.txt cannot be read"),
        ("cars", make_cars, hide_labels, {"split": "test"}, "the annotations have no class; labels are needed"),
        (
            "cars",
            make_cars,
            lambda path: (path / "devkit/cars_meta.mat").unlink(),
            {},
            r"cars_meta\.mat cannot be read",
        ),
        ("pets", make_pets, lambda path: None, {"split": "train"}, r"train\.txt cannot be read"),
    ],
)
def test_a_published_set_that_is_not_whole_is_refused(tmp_path, layout, make, break_it, options, words):
    make(tmp_path / "set")
    break_it(tmp_path / "set")
    if layout == "flowers":
        options = {"classes": str(tmp_path / "set" / "names.txt"), **options}
    with pytest.raises(UserError, match=words):
        rows_of(tmp_path / "set", layout=layout, **options)


def test_odd_values_in_mat_files_are_named_by_file_and_row(tmp_path):
    odd = [np.nan, np.inf, 2.5, "x", "", {"a": 1}, [1, 2], []]  # no whole number: a fault each
    values, kind = np.empty(9, object), [("class", object), ("fname", object)]
    values[:] = [2, *odd]
    make_flowers(tmp_path / "flowers")
    names = str(tmp_path / "flowers" / "names.txt")
    savemat(tmp_path / "flowers" / "imagelabels.mat", {"labels": values})
    savemat(tmp_path / "flowers" / "setid.mat", {"trnid": np.arange(1, 10), "valid": values})
    rows, faults = rows_of(tmp_path / "flowers", layout="flowers", classes=names)
    assert [row["gold"] for row in rows] == ["sweet pea"]
    assert [fault.partition(":")[0] for fault in faults] == [f"imagelabels.mat, row {n}" for n in range(2, 10)]
    _, faults = rows_of(tmp_path / "flowers", layout="flowers", classes=names, split="val")
    listed = [fault.partition(":")[0] for fault in faults if "setid" in fault]
    assert listed == [f"setid.mat, valid {n}" for n in range(2, 10)]
    savemat(tmp_path / "flowers" / "imagelabels.mat", {"labels": np.array([1.0, np.nan])})
    savemat(tmp_path / "flowers" / "setid.mat", {"trnid": np.array([1.0, np.nan])})
    rows, faults = rows_of(tmp_path / "flowers", layout="flowers", classes=names)
    assert (len(rows), len(faults)) == (1, 1)
    make_cars(tmp_path / "cars")
    entries = np.array([[(value, f"{n:05d}.jpg") for n, value in enumerate(values, 1)]], dtype=kind)
    savemat(tmp_path / "cars" / "devkit" / "cars_train_annos.mat", {"annotations": entries})
    rows, faults = rows_of(tmp_path / "cars", layout="cars", split="train")
    assert [row["image"] for row in rows] == ["cars_train/00001.jpg"]
    where = [fault.partition(":")[0] for fault in faults]
    assert where == [f"cars_train_annos.mat, row {n} ({n:05d}.jpg)" for n in range(2, 10)]


def test_a_mat_file_of_a_billion_labels_is_refused_before_it_is_unpacked(tmp_path):
    make_flowers(tmp_path / "set")
    savemat(tmp_path / "set" / "imagelabels.mat", {"labels": np.zeros((1, 10_000_001), np.uint8)}, do_compression=True)
    with pytest.raises(UserError, match=r"imagelabels\.mat: labels has 10,000,001 entries"):
        rows_of(tmp_path / "set", layout="flowers", classes=str(tmp_path / "set" / "names.txt"))


def test_a_pth_with_damaged_bytes_is_refused_by_name_or_read(tmp_path, classes):
    torch = pytest.importorskip("torch")
    path, draw, n_read = tmp_path / "list.pth", random.Random(0), 0
    torch.save([{"a.jpg": {"label": torch.tensor(0)}}], path)
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            rows_of(path, layout="list", classes=classes)
            n_read += 1
    assert 0 < n_read < 60


def test_wrong_labels_of_published_sets_are_named(tmp_path):
    make_flowers(tmp_path / "flowers")
    (tmp_path / "flowers" / "names.txt").write_text("pink primrose\nsweet pea")
    savemat(tmp_path / "flowers" / "setid.mat", {"trnid": np.array([[1, 3, 9]])})
    rows, faults = rows_of(tmp_path / "flowers", layout="flowers", classes=str(tmp_path / "flowers" / "names.txt"))
    assert [row["gold"] for row in rows] == ["pink primrose"]
    assert faults == [
        "imagelabels.mat, row 3: label 3 is unknown; the classes have the numbers 1 to 2",
        "setid.mat, trnid: there is no image 9; imagelabels.mat has 6",
    ]
    make_pets(tmp_path / "pets")
    (tmp_path / "pets" / "annotations" / "trainval.txt").write_text(
        "american_bulldog_10 1\nAbyssinian_1 1\nx 3 1 1\ny_1"
    )
    rows, faults = rows_of(tmp_path / "pets", layout="pets")
    assert [row["gold"] for row in rows] == ["american bulldog"]
    assert [fault.partition(":")[0] for fault in faults] == [f"trainval.txt, row {n}" for n in (2, 3, 4)]
    make_aircraft(tmp_path / "aircraft")
    (tmp_path / "aircraft" / "data" / "images_variant_train.txt").write_text("0034309 A380\n1025794\n")
    rows, faults = rows_of(tmp_path / "aircraft", layout="aircraft")
    assert rows == []
    assert [fault.partition(":")[0] for fault in faults] == [f"images_variant_train.txt, row {n}" for n in (1, 2)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "flower"}, "dataset.layout is 'flower'; folders or list or flowers"),
        ({"layout": "flowers"}, "dataset.classes is null, and flowers have numbers alone"),
        ({"level": "kind"}, "dataset.level is 'kind'; variant or family or manufacturer is needed"),
        ({"class_depth": 0}, "dataset.class_depth is 0; at least 1 is needed"),
        ({"path_parts": 0}, "dataset.path_parts is 0; at least 1 is needed"),
        ({"first_label": -1}, "dataset.first_label is -1"),
        ({"n_shot": 1}, "no key 'n_shot'; did you mean k_shot? known: "),
    ],
)
def test_a_wrong_option_is_named(animals, tmp_path, options, words):
    with pytest.raises(UserError) as caught:
        built(animals, tmp_path, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("task", ["detection", "counting", "grounding"])
def test_another_task_is_refused(animals, tmp_path, task):
    with pytest.raises(UserError, match=f"task={task} has no rows in folders of classes; task=classification has"):
        build({"path": str(animals)}, task=load_task(task), out_dir=tmp_path / "run", seed=0)


def test_every_layout_that_may_be_chosen_has_a_reader():
    assert set(get_args(Options.model_fields["layout"].annotation)) == LAYOUTS.keys()

"""What all sources share: options, bad rows left out, builds that go on, and the same bytes whatever the order."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vrft.data.assemble import SKIPPED_FILE, _cut, build_splits
from vrft.data.coco_rows import Options as CocoOptions
from vrft.data.images import KEPT_FILE, ImageReader
from vrft.data.json_rows import build
from vrft.data.options import CommonOptions, read_options
from vrft.data.read_ahead import N_ALONE, N_ROWS, read_ahead
from vrft.data.splits import MANIFEST_FILE, Checked, finish_manifest
from vrft.errors import UserError
from vrft.files import write_rows
from vrft.tasks import load_task

REPOSITORY = Path(__file__).parents[3]
BOX = {"category": "dog", "gold": [[1, 2, 10, 12]]}
N_MANY = N_ALONE + 3 * N_ROWS  # enough for other processes to be started


def picture(path, seed, size=(16, 16)) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(8):
        picture(folder / f"{seed}.png", seed)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of N_MANY pictures and their rows, each of the class `cat` or `dog`."""
    folder = tmp_path_factory.mktemp("many")
    for seed in range(N_MANY):
        picture(folder / f"{seed}.png", seed)
    rows = [
        {"image": f"{n}.png", "row_id": f"id {n}", "category": ("cat", "dog")[n % 2], "gold": BOX["gold"]}
        for n in range(N_MANY)
    ]
    write_rows(folder / "rows.jsonl", rows)
    return folder, rows


def built(folder, rows=None, *, file="rows.jsonl", out="out", seed=0, **options):
    if rows is not None:
        write_rows(folder / file, rows)
    options = {"path": str(folder / file), **({} if "test_path" in options else {"n_test": 0}), **options}
    splits = build(options, task=load_task("detection"), out_dir=folder.parent / out, seed=seed)
    finish_manifest(folder.parent / out)
    return splits


def written(folder, out="out"):
    return json.loads((folder.parent / out / MANIFEST_FILE).read_text(encoding="utf-8"))


class OwnOptions(CommonOptions):
    """A source's keys for these tests."""

    path: str
    share: float = 0.5
    names: list[str] | str | None = None
    is_loud: bool = False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "dataset.path is missing; a text is needed"),
        ({"path": 3}, "dataset.path is 3; a text is needed"),
        ({"path": "a", "share": "half"}, "dataset.share is 'half'; a number is needed"),
        ({"path": "a", "share": True}, "dataset.share is True"),  # a bool is no number
        ({"path": "a", "names": ["x", 3]}, "dataset.names is ['x', 3]; a list of texts or a text or null is needed"),
        ({"path": "a", "is_loud": 1}, "dataset.is_loud is 1; true or false is needed"),
        ({"path": "a", "pathh": 1}, "dataset has no key 'pathh'; did you mean path? known: image_root, "),
        ({"path": "a", "columns": {"image": 3}}, "dataset.columns is {'image': 3}"),
        ({"path": "a", "on_bad_row": "drop"}, "dataset.on_bad_row is 'drop'; stop or skip is needed"),
        ({"path": "a", "n_processes": 0}, "dataset.n_processes is 0; at least 1 is needed"),
        ({"path": "a", "n_test": True}, "dataset.n_test is True"),
        ({"path": "a", "test_image_root": "nowhere"}, "dataset.test_image_root is 'nowhere'; there is no such folder"),
    ],
)
def test_a_wrong_option_is_named(options, words):
    with pytest.raises(UserError) as caught:
        read_options(options, OwnOptions)
    assert words in str(caught.value)


def test_options_of_the_source_and_of_all_sources_are_one():
    options = read_options({"builder": "x", "path": "a", "share": 1, "names": "b", "max_rows": 3}, OwnOptions)
    assert (options.max_rows, options.n_validation) == (3, 0)
    assert options == OwnOptions(path="a", share=1, names="b", max_rows=3)


def test_all_wrong_options_are_shown_together():
    with pytest.raises(UserError, match=r"(?s)n_test.*on_bad_row"):
        read_options({"path": "a", "n_test": -1, "on_bad_row": "x"}, OwnOptions)


def test_any_source_is_assembled(data):
    def read(options, *, is_test, faults):
        faults.append("list.txt, line 9: nonsense")
        return iter([("list.txt", 1, {"image": "0.png", **BOX}), ("list.txt", 2, {"image": "x.png", **BOX})]), data

    chosen = {
        "own": OwnOptions,
        "read": read,
        "task": load_task("detection"),
        "out_dir": data.parent / "out",
        "seed": 0,
    }
    with pytest.raises(UserError) as caught:
        build_splits({"path": "list.txt", "n_test": 0}, **chosen)
    for words in (
        "dataset.path=list.txt has rows",
        "list.txt, line 9: nonsense",
        "list.txt, row 2: image 'x.png' is missing",
    ):
        assert words in str(caught.value)
    [row] = build_splits({"path": "list.txt", "n_test": 0, "on_bad_row": "skip"}, **chosen)["train"]
    assert row["images"] == [str(data / "0.png")]


BAD = [
    ({"image": "gone.png", **BOX}, "rows.jsonl, row 2: image 'gone.png' is missing"),
    ({"image": "1.png", "category": "dog", "gold": [[5, 5, 1, 1]]}, "rows.jsonl, row 2: box [5, 5, 1, 1] has no area"),
    ({"image": "1.png"}, "rows.jsonl, row 2: column 'gold'"),
    ({"category": "dog"}, "rows.jsonl, row 2: one column of image"),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_a_bad_row_is_left_out_counted_and_listed(data, capsys, bad, words):
    rows = [{"image": "0.png", **BOX}, bad, {"image": "2.png", **BOX}]
    splits = built(data, rows, on_bad_row="skip")
    assert [row["row_id"] for row in splits["train"]] == ["row-000001", "row-000003"]
    [listed] = json.loads((data.parent / "out" / SKIPPED_FILE).read_text(encoding="utf-8"))
    assert listed.startswith(words)
    assert "1 bad rows or annotations are left out" in capsys.readouterr().err
    assert written(data)["n_skipped"] == 1
    built(data, rows[:1])  # a build without bad rows takes the list away
    assert not (data.parent / "out" / SKIPPED_FILE).exists()


def test_rows_that_share_an_id_are_all_left_out(data):
    rows = [{"image": f"{n}.png", "row_id": ("same", "same", "other")[n], **BOX} for n in range(3)]
    assert [row["row_id"] for row in built(data, rows, on_bad_row="skip")["train"]] == ["other"]


def test_a_training_row_that_shows_a_test_image_is_left_out(data):
    picture(data / "again.bmp", 0)  # the same pixels in another file
    write_rows(data / "test.jsonl", [{"image": "again.bmp", **BOX}])
    options = {"rows": [{"image": f"{n}.png", **BOX} for n in range(2)], "test_path": str(data / "test.jsonl")}
    with pytest.raises(UserError, match="row test-000001 of the test set shows the same image as row row-000001"):
        built(data, **options)
    splits = built(data, **options, on_bad_row="skip")
    assert [row["row_id"] for part in splits.values() for row in part] == ["row-000002", "test-000001"]


def test_rows_that_are_all_bad_are_refused_even_then(data):
    with pytest.raises(
        UserError, match=r"has no rows(.|\n)*all 2 are bad, the first: rows.jsonl, row 1: image 'x.png'"
    ):
        built(data, [{"image": "x.png", **BOX}, {"image": "y.png", **BOX}], on_bad_row="skip")


def test_a_manifest_holds_what_a_row_says_and_shows(data):
    [row] = built(data, [{"image": "0.png", "row_id": 7, **BOX}])["train"]
    manifest = written(data)
    with Image.open(data / "0.png") as image:
        content = hashlib.sha256(b"(16, 16)" + image.convert("RGB").tobytes()).hexdigest()
    columns = {name: row[name] for name in ("category", "gold", "image_wh")}
    digest = hashlib.sha256(json.dumps([columns, [content]], sort_keys=True).encode()).hexdigest()
    assert manifest["splits"] == {
        "train": [{"row_id": "7", "row": digest, "images": [content]}],
        "validation": [],
        "test": [],
    }
    assert (manifest["seed"], manifest["n_rows"]) == (0, {"train": 1, "validation": 0, "test": 0})
    assert manifest["options"]["path"] == str(data / "rows.jsonl")


def bytes_of(folder, rows, *, out, seed=0, **options) -> bytes:
    splits = built(folder, rows, out=out, seed=seed, n_validation=30, n_test=40, **options)
    return json.dumps(splits).encode() + (folder.parent / out / MANIFEST_FILE).read_bytes()


def test_the_same_seed_gives_the_same_bytes(many):
    folder, rows = many
    usual = bytes_of(folder, rows, out="one", n_processes=1)
    mixed = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]
    assert bytes_of(folder, mixed, out="two", n_processes=1) == usual, "the order of rows does not matter"
    assert bytes_of(folder, rows, out="three", n_processes=2) == usual, "nor the number of processes"
    assert bytes_of(folder, rows, out="two", n_processes=3) == usual, "nor what an earlier build has read"
    assert bytes_of(folder, rows, out="four", n_processes=1, seed=1) != usual


def picked(n_rows, **options):
    """The lengths of training, validation and test part of that many rows, each with an image of its own."""
    checked = [Checked({"row_id": str(n)}, [str(n)]) for n in range(n_rows)]
    tests = [Checked({"row_id": f"test {n}"}, [f"test {n}"]) for n in range(7)] if "test_path" in options else []
    splits = _cut(checked, tests, CocoOptions(**{"path": "a", "n_validation": None} | options), seed=0)
    return [len(splits[split]) for split in ("train", "validation", "test")]


@pytest.mark.parametrize(
    ("n_rows", "options", "lengths"),
    [
        (60, {}, [36, 12, 12]),  # a fifth each
        (3, {}, [1, 1, 1]),
        (2, {}, [1, 0, 1]),
        (5000, {}, [4500, 200, 300]),  # at most so many
        (60, {"n_validation": 5}, [43, 5, 12]),  # a number wins
        (60, {"n_validation": 0, "n_test": 20}, [40, 0, 20]),
        (60, {"n_test": 100}, [0, 0, 60]),
        (60, {"n_test": "all"}, [0, 0, 60]),
        (60, {"test_path": "b"}, [48, 12, 7]),
        (60, {"test_path": "b", "n_test": 3}, [48, 12, 3]),
        (60, {"test_path": "b", "n_test": "all"}, [48, 12, 7]),
    ],
)
def test_without_numbers_a_fifth_is_set_apart(n_rows, options, lengths):
    assert picked(n_rows, **options) == lengths


def test_images_that_a_checkpoint_has_seen_are_left_out(data, capsys):
    rows = [{"image": f"{n}.png", **BOX} for n in range(8)]
    seen = built(data, rows, out="seen", n_validation=2, n_test=3)
    options = {"n_test": "all", "unseen_by": str(data.parent / "seen")}
    assert built(data, **options) == {"train": [], "validation": [], "test": seen["test"]}
    assert "note: 5 of 8 rows are left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has all images for training or validation; dataset\.n_test=all takes them"):
        built(data, [rows[int(row["row_id"][-1]) - 1] for row in seen["train"]], file="other.jsonl", **options)


def test_fewer_shots_are_among_more_shots(many):
    folder, rows = many
    shots = [
        {row["row_id"] for row in built(folder, rows, k_shot=k, seed=5, out="shots")["train"]} for k in (1, 2, 4, 16)
    ]
    assert [len(part) for part in shots] == [2, 4, 8, 32]
    assert all(fewer < more for fewer, more in pairwise(shots))


@pytest.mark.parametrize("n_processes", [1, 2])
def test_what_was_read_is_not_decoded_again(many, tmp_path, n_processes):
    folder, rows = many
    copy = tmp_path / "data"
    copy.mkdir()
    for n in range(N_MANY):
        os.link(folder / f"{n}.png", copy / f"{n}.png")
    before = built(copy, rows, n_processes=n_processes)
    with (tmp_path / "out" / KEPT_FILE).open("a") as file:
        file.write('\n["cut by a ki')
    state = (copy / "3.png").stat()
    (copy / "3.png").unlink()
    (copy / "3.png").write_bytes(b"x" * state.st_size)  # no image any more, but nothing that one sees from outside
    os.utime(copy / "3.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert built(copy, rows, n_processes=n_processes) == before
    os.utime(copy / "3.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"row 4: image '3\.png' is not an image"):
        built(copy, rows, n_processes=n_processes)


def test_a_stored_picture_that_is_gone_is_stored_again(data):
    Image.new("RGBA", (16, 16), (1, 2, 3, 4)).save(data / "clear.png")
    [row] = built(data, [{"image": "clear.png", **BOX}])["train"]
    stored = data.parent / "out" / row["images"][0]
    stored.unlink()
    assert built(data, [{"image": "clear.png", **BOX}])["train"] == [row]
    assert stored.is_file()
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]  # nothing half written


@pytest.mark.parametrize("n_processes", [1, 2])
def test_an_image_of_several_rows_is_decoded_once(many, tmp_path, n_processes):
    folder, _ = many
    names = [f"{n // 3}.png" for n in range(3 * N_MANY)]  # whose rows lie in two pieces of work now and then
    images = ImageReader(root=folder, out_dir=tmp_path, is_kept=True)
    for name in read_ahead(names, images, values=lambda name: [name], n_processes=n_processes):
        assert images.read(name).path == str(folder / name)
    assert (tmp_path / KEPT_FILE).read_bytes().count(b"\n") == N_MANY


BUILD = """
import sys, pathlib
from vrft.data.json_rows import build
from vrft.data.options import CommonOptions, read_options
from vrft.tasks import load_task

if __name__ == "__main__":
    path, out = sys.argv[1:]
    build({"path": path, "n_processes": 2, "n_test": 0}, task=load_task("detection"), out_dir=pathlib.Path(out), seed=0)
"""


def test_a_killed_build_resumes_and_leaves_no_process(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for seed in range(40):
        picture(data / f"{seed}.png", seed, size=(320, 240))
    for n in range(40, N_MANY * 2):
        (data / f"{n}.png").write_bytes((data / f"{n % 40}.png").read_bytes())
    rows = [{"image": f"{n}.png", **BOX} for n in range(N_MANY * 2)]
    write_rows(data / "rows.jsonl", rows)
    (tmp_path / "build.py").write_text(BUILD)
    command = [sys.executable, str(tmp_path / "build.py"), str(data / "rows.jsonl"), str(tmp_path / "out")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, start_new_session=True)
    kept = tmp_path / "out" / KEPT_FILE
    deadline = time.monotonic() + 60
    while not kept.exists() or kept.read_bytes().count(b"\n") < N_ALONE + N_ROWS:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_kept = kept.read_bytes().count(b"\n")
    assert n_kept < len(rows)
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
    while _members(process.pid):
        assert time.monotonic() < deadline, "the processes that decoded are still there"
        time.sleep(0.05)
    again = built(data, rows, n_processes=2)
    assert kept.read_bytes().count(b"\n") == len(rows), "each file was noted once: none of the first was read again"
    assert again == built(data, rows, out="fresh", n_processes=2)


def _members(session: int) -> list[str]:
    """The processes of a session that are not dead."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, member_of, *_ = status.read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if member_of == str(session) and state != "Z":
            found.append(status.parent.name)
    return found


def test_a_killed_process_is_named(many, tmp_path):
    folder, _ = many

    def names():
        for n in range(N_MANY):
            if n == N_ALONE + 2 * N_ROWS:
                for child in _children(os.getpid()):
                    os.kill(child, signal.SIGKILL)
            yield f"{n}.png"

    images = ImageReader(root=folder, out_dir=tmp_path)
    with pytest.raises(UserError, match=r"was killed, probably because memory ran out; lower dataset\.n_"):
        list(read_ahead(names(), images, values=lambda name: [name], n_processes=2))


def _children(parent: int) -> list[int]:
    """The processes that multiprocessing has spawned here to decode."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if status.read_text().rpartition(")")[2].split()[1] == str(parent):
                command = (status.parent / "cmdline").read_bytes()
                found += [int(status.parent.name)] if b"spawn_main" in command else []
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("n_processes", "most"), [(1, N_ROWS), (2, 7 * N_ROWS)])
def test_few_rows_are_held_at_a_time(many, tmp_path, n_processes, most):
    folder, _ = many
    n_taken = 0

    def names():
        nonlocal n_taken
        for n in range(N_MANY):
            n_taken += 1
            yield f"{n}.png"

    images = ImageReader(root=folder, out_dir=tmp_path)
    ahead = read_ahead(names(), images, values=lambda name: [name], n_processes=n_processes)
    held = [n_taken - n_used for n_used, _ in enumerate(ahead)]
    assert len(held) == N_MANY
    assert max(held) <= most


def test_the_bar_is_off_where_there_is_no_terminal(data, capsys):
    built(data, [{"image": "0.png", **BOX}])
    assert capsys.readouterr().err == ""

"""Built rows: read as they were built, on another machine too, and refused where they have changed."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vrft.config.not_given import with_rows_of_run
from vrft.config.verb_schema import BuildConfig
from vrft.data import images
from vrft.data.prebuilt import build
from vrft.errors import UserError
from vrft.files import write_rows
from vrft.run.rows import build_rows


@pytest.fixture
def laptop(tmp_path):
    """A folder with img/ of five pictures, one of them with transparent parts, and `rows`, built of them."""
    folder = tmp_path / "laptop"
    (folder / "img").mkdir(parents=True)
    for n in range(5):
        Image.new("RGBA" if n == 4 else "RGB", (80, 60), (n, 9, 9, 90)[: 4 if n == 4 else 3]).save(
            folder / f"img/{n}.png"
        )
    rows = [{"image": f"img/{n}.png", "phrase": f"p{n}", "gold": [5, 5, 40, 30]} for n in range(5)]
    write_rows(folder / "rows.jsonl", rows)
    dataset = {"builder": "records", "path": str(folder / "rows.jsonl"), "n_validation": 1, "n_test": 1}
    build_rows(config_of(dataset), folder / "rows")
    return folder


def config_of(dataset):
    run = {"seed": 0, "resume": False}
    return BuildConfig(task={"name": "grounding"}, dataset=dataset, trust_code=[], out="", run=run)


def read(folder, **options):
    return build({"path": str(folder / "rows"), **options}, task=None, out_dir=folder / "run", seed=0)


def refusal(folder, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, **options)
    return str(caught.value)


def change_row(folder, **columns) -> None:
    """Change columns of the first training row."""
    first, *more = (folder / "rows" / "train.jsonl").read_text().splitlines()
    write_rows(folder / "rows" / "train.jsonl", [json.loads(first) | columns, *map(json.loads, more)])


def images_of(splits) -> list[str]:
    return sorted(path for rows in splits.values() for row in rows for path in row["images"])


def test_rows_are_read_as_they_were_built_and_no_image_is_decoded_again(laptop, monkeypatch):
    monkeypatch.setattr(images, "decode_upright", None)
    found = images_of(read(laptop))
    assert [Path(path).parent for path in found] == [laptop / "img"] * 4 + [laptop / "rows" / "images"]


@pytest.mark.parametrize("root", ["", "img"])
def test_rows_move_with_their_images(laptop, root):
    server = laptop.rename(laptop.with_name("server"))
    message = refusal(server)
    assert f"image '{laptop}/img/" in message
    assert "say where the images lie now: dataset.image_root=FOLDER" in message
    found = images_of(read(server, image_root=str(server / root)))
    assert [Path(path).parent for path in found] == [server / "img"] * 4 + [server / "rows" / "images"]
    assert "no file below dataset.image_root" in refusal(server, image_root=str(server / "rows"))


def test_an_image_that_was_replaced_is_refused(laptop):
    shutil.copy(laptop / "img" / "3.png", laptop / "img" / "0.png")
    message = refusal(laptop)
    assert "laptop/img/0.png' shows other pixels than the manifest says" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../private.png", "outside of"),
        ("link.png", "outside of"),
        ("{private}", "shows other pixels"),  # only pixels that its builder had
        ("/dev/zero", "is missing"),
        ("https://example.org/a.png", "is a URL"),
        ("gone.png", "is missing"),
    ],
)
@pytest.mark.parametrize("has_root", [True, False])
def test_built_rows_show_no_private_picture(laptop, path, words, has_root):
    private = laptop / "private.png"
    Image.new("RGB", (80, 60), "red").save(private)
    (laptop / "rows" / "link.png").symlink_to(private)
    change_row(laptop, images=[path.format(private=private)])
    options = {"image_root": str(laptop / "img")} if has_root else {}
    message = refusal(laptop, **options)
    assert "train, row row-" in message
    assert (words if not path.startswith(("{", "/")) or not has_root else "is missing") in message


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"gold": [5, 5, 41, 30]}, "changed since the build"),
        ({"images": []}, "changed since the build"),
        ({"images": "a.png"}, "changed since the build"),
        ({"images": [3]}, "changed since the build"),
        ({"row_id": 3}, "train.jsonl: its 3 rows are not the 3 of the manifest"),
    ],
)
def test_a_changed_row_is_refused(laptop, columns, words):
    change_row(laptop, **columns)
    assert words in refusal(laptop)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", '{"splits": {"train": 3}}', '{"splits": {"train": [{"row_id": "a"}]}}', b"\xff",
     "[" * 10**5,
     '{"splits": {"../train": []}}', '{"splits": {"train": [{"row_id": "a", "row": "b", "images": "c"}]}}', None],
)  # fmt: skip
def test_a_damaged_manifest_is_refused(laptop, content):
    manifest = laptop / "rows" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(
        whole[:300] if content is None else content if isinstance(content, bytes) else content.encode()
    )
    assert "manifest.json is cut or not what vrft build wrote" in refusal(laptop)


def test_what_is_not_there_is_named(laptop):
    (laptop / "rows" / "test.jsonl").unlink()
    assert "test.jsonl is missing" in refusal(laptop)
    (laptop / "rows" / "manifest.json").unlink()
    assert "has no manifest.json; dataset.path must be the folder of a finished vrft build" in refusal(laptop)


def test_the_frame_of_own_questions_is_asked_for(laptop, capsys):
    row = {"image": "img/0.png", "problem": "Where?", "solution": "(10,20),(300,400)"}
    write_rows(laptop / "own.jsonl", [row, row | {"image": "img/1.png"}])
    options = {"path": str(laptop / "own.jsonl"), "n_test": 0, "frame": "norm1000", "builder": "records"}
    config = {"task": {"name": "grounding"}, "dataset": options, "trust_code": [], "out": ""}
    build_rows(BuildConfig(**config, run={"seed": 0, "resume": True}), laptop / "own" / "rows")
    capsys.readouterr()
    read(laptop / "own")
    assert "were built with dataset.frame=norm1000; give the same here" in capsys.readouterr().err
    read(laptop / "own", frame="norm1000")
    assert capsys.readouterr().err == ""


def test_a_damaged_record_of_decoded_images_costs_time_alone(laptop):
    lines = ["[" * 10**5, "[[], [1, 2], [3, [4, 5], 6]]", '["a", [1, 2], [3, [4, 5], 6]]', "{", "3"]
    (laptop / "rows" / images.KEPT_FILE).write_text("\n".join(lines))
    assert len(images_of(read(laptop))) == 5


def test_an_image_is_decoded_where_its_file_is_another(laptop):
    path = laptop / "img" / "0.png"
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert len(images_of(read(laptop))) == 5


def test_a_run_on_built_rows_leaves_built_rows(laptop):
    """So `vrft evaluate model.path=RUN/checkpoints/best` finds them, and leaves out what the run was trained on."""
    run_dir = laptop / "run"
    built = build_rows(config_of({"builder": "built", "path": str(laptop / "rows")}), run_dir / "data")
    assert build({"path": str(run_dir / "data")}, task=None, out_dir=laptop / "next", seed=0) == built
    values = {"model": {"path": str(run_dir / "checkpoints" / "best")}, "dataset": {"builder": "digits"}}
    assert with_rows_of_run(values, [])["dataset"]["path"] == str(run_dir / "data")


def test_rows_read_in_place_keep_their_manifest(laptop):
    before = (laptop / "rows" / "manifest.json").read_bytes()
    build_rows(config_of({"builder": "built", "path": str(laptop / "rows")}), laptop / "rows")
    assert (laptop / "rows" / "manifest.json").read_bytes() == before


def test_other_rows_that_a_resumed_run_refuses_leave_its_manifest(laptop):
    before = (laptop / "rows" / "manifest.json").read_bytes()
    others = {"builder": "records", "path": str(laptop / "rows.jsonl"), "n_validation": 1, "n_test": 2}
    with pytest.raises(UserError, match="rows then"):
        build_rows(config_of(others), laptop / "rows", is_resuming=True)
    assert (laptop / "rows" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("domain", ["dim", "clean"])
def test_digits_are_built_too(tmp_path, domain):
    options = {"k_shot": 1, "n_validation": 2, "n_test": 3, "domain": domain}
    rows = build_rows(config_of({"builder": "digits", **options}), tmp_path / "rows")
    found = build({"path": str(tmp_path / "rows")}, task=None, out_dir=tmp_path / "run", seed=0)
    ids = {split: [row["row_id"] for row in part] for split, part in rows.items()}
    assert {split: [row["row_id"] for row in part] for split, part in found.items()} == ids
    assert len(ids["train"]) == 10

"""The embedded world: pools and expressions stay apart, rows are right, and the same seed gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vrft.data import load_builder
from vrft.data.digits import build
from vrft.data.digits.riddles import riddles
from vrft.data.digits.scenes import POOL_SIZES, draw_scene, glyph_pool, load_glyphs
from vrft.errors import UserError
from vrft.tasks import load_task
from vrft.tasks.rows import rows_hash

SMALL = {"k_shot": 2, "n_validation": 10, "n_test": 20}
WORLDS = [
    ("detection", {}, {"train", "validation", "test", "clean"}),
    ("grounding", {}, {"train", "validation", "test", "clean"}),
    ("reasoning_grounding", {}, {"train", "validation", "test", "seen", "clean"}),
    ("classification", {}, {"train", "validation", "test", "clean"}),
    ("classification", {"arithmetic": True}, {"train", "validation", "test", "seen", "clean"}),
    ("reasoning_grounding", {"domain": "clean"}, {"train", "validation", "test", "seen"}),
]


def built(folder: Path, task: str = "reasoning_grounding", seed: int = 0, **options) -> dict:
    return build({**SMALL, **options}, task=load_task(task), out_dir=folder, seed=seed)


def test_glyph_pools_are_apart_and_use_every_glyph():
    pools = {name: [glyph for of_digit in glyph_pool(name) for glyph in of_digit] for name in POOL_SIZES}
    assert {name: len(glyphs) for name, glyphs in pools.items()} == {
        "pretraining": 1197,
        "few_shot": 200,
        "validation": 140,
        "test": 260,
    }
    assert sorted(glyph for glyphs in pools.values() for glyph in glyphs) == list(range(1797))


def test_a_pool_sorts_its_glyphs_by_their_label():
    _, labels = load_glyphs()
    assert all(labels[glyph] == digit for digit in range(10) for glyph in glyph_pool("test")[digit])


def test_expressions_are_counted_and_split_as_stated():
    phrases = {
        which: {r.phrase for of_digit in riddles(which) for r in of_digit} for which in ("one_step", "seen", "unseen")
    }
    # 36 sums and 45 differences of two digits from 1 to 9 stay within 0 to 9; each result has nine next steps.
    assert {which: len(found) for which, found in phrases.items()} == {"one_step": 81, "seen": 437, "unseen": 292}
    assert not phrases["seen"] & phrases["unseen"]


def test_a_riddle_states_its_answer():
    for which in ("one_step", "seen", "unseen"):
        for digit, name in ((0, "zero"), (4, "four"), (9, "nine")):
            assert all(r.thought.endswith(f"is {name}.") and r.results[-1] == digit for r in riddles(which)[digit])
            assert all(0 <= result <= 9 for r in riddles(which)[digit] for result in r.results)


@pytest.mark.parametrize("digit", range(10))
def test_boxes_are_tight_around_the_ink(digit):
    rng = np.random.default_rng(digit)
    for _ in range(5):
        scene = draw_scene((digit,), pool="test", domain="clean", sizes=(18, 30), rng=rng)
        inked = scene.pixels[..., 2] > 255 * (0.1 + 0.9 * 0.3)  # blue paper is 0.1, so 30 % ink is 0.37
        rows, columns = np.nonzero(inked)
        seen_xyxy = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(scene.boxes_xyxy[0] - seen_xyxy).max() <= 1  # noise may move an edge by a pixel


def test_digits_of_a_scene_do_not_overlap():
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, two, three = draw_scene((1, 2, 3), pool="test", domain="clean", sizes=(18, 30), rng=rng).boxes_xyxy
        for a, b in ((one, two), (one, three), (two, three)):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize(("task", "options", "splits"), WORLDS)
def test_every_row_passes_its_tasks_check(tmp_path, task, options, splits):
    rows_of = built(tmp_path, task, **options)
    assert set(rows_of) == splits
    assert {split: len(rows) for split, rows in rows_of.items()} == {
        split: {"train": 20, "validation": 10}.get(split, 20) for split in splits
    }
    for row in (row for rows in rows_of.values() for row in rows):
        load_task(task).check(row)
        with Image.open(tmp_path / row["images"][0]) as image:
            assert image.size == tuple(row["image_wh"]) == (56, 56)


def test_same_seed_same_bytes_other_seed_other_training_rows(tmp_path):
    first, again, other = (built(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    for split in first:
        assert rows_hash(first[split], tmp_path / "a") == rows_hash(again[split], tmp_path / "b")
    assert first["train"] != other["train"]


def test_test_rows_depend_on_neither_seed_nor_shots(tmp_path):
    first, other = built(tmp_path / "a"), built(tmp_path / "b", seed=5, k_shot=1)
    for split in ("validation", "test", "seen", "clean"):
        assert rows_hash(first[split], tmp_path / "a") == rows_hash(other[split], tmp_path / "b")


def test_fewer_shots_are_the_first_of_more(tmp_path):
    assert built(tmp_path / "a", k_shot=1)["train"] == built(tmp_path / "b", k_shot=4)["train"][:10]


def test_every_class_gets_its_shots(tmp_path):
    names = [row["gold"] for row in built(tmp_path, "classification", k_shot=3)["train"]]
    assert {name: names.count(name) for name in names} == dict.fromkeys(names, 3)
    assert len(set(names)) == 10


def test_training_and_seen_rows_ask_seen_expressions_and_test_rows_unseen_ones(tmp_path):
    rows_of = built(tmp_path)
    unseen = {r.phrase for of_digit in riddles("unseen") for r in of_digit}
    for split, rows in rows_of.items():
        assert {row["phrase"] in unseen for row in rows} == {split in ("test", "clean")}


def test_clean_scenes_are_the_test_scenes_in_full_ink(tmp_path):
    rows_of = built(tmp_path)
    for dim, clean in zip(rows_of["test"], rows_of["clean"], strict=True):
        assert (dim["gold"], dim["phrase"]) == (clean["gold"], clean["phrase"])
        dim_ink, clean_ink = (np.asarray(Image.open(tmp_path / row["images"][0]), int).max() for row in (dim, clean))
        assert dim_ink < 200 < clean_ink


def test_riddle_scenes_hold_two_distractors(tmp_path):
    rows = built(tmp_path)["test"]
    assert {len(row["distractors"]) for row in rows} == {2}


def test_share_of_scenes_without_the_asked_digit(tmp_path):
    rows_of = built(tmp_path, "detection", n_test=200, negatives=0.5, k_shot=4)
    assert 70 <= sum(not row["gold"] for row in rows_of["test"]) <= 130  # 100 expected, standard deviation 7
    assert all(row["gold"] for row in rows_of["train"][:10])  # the first shot of each class shows it
    assert any(not row["gold"] for row in rows_of["train"][10:])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("detection", {"shots": 3}, "dataset has no key 'shots'; did you mean k_shot. known: domain, k_shot"),
        ("detection", {"domain": "dark"}, "dataset.domain is 'dark'; clean or dim is needed"),
        ("detection", {"k_shot": 0}, "dataset.k_shot is 0"),
        ("detection", {"n_test": True}, "dataset.n_test is True"),  # a bool is no count
        ("detection", {"negatives": 1.5}, "dataset.negatives is 1.5"),
        ("detection", {"arithmetic": True}, "works only with task=classification"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, task, options, message):
    with pytest.raises(UserError, match=message):
        built(tmp_path, task, **options)


def test_an_unknown_builder_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="known builders: digits, records"):
        load_builder("numbers")

"""Completions of a set of rows: the same from any number of processes, and after any interruption."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vrft.data.images import load_image
from vrft.errors import UserError
from vrft.evaluate import completions
from vrft.evaluate.completions import Sampling, generate_completions
from vrft.evaluate.partial_completions import KeptBatches, OtherEvaluationError
from vrft.tasks import load_task
from vrft.tasks.boxes import Frame

FINGERPRINT = {"config": "c", "data": "d", "model": "m"}


def frame_for_row(row):
    return Frame("norm1000", tuple(row["image_wh"]), tuple(row["image_wh"]))


def scene_rows(folder, n_rows):
    rows = []
    for i in range(n_rows):
        wh = [20 + 7 * (i % 3), 20]
        Image.new("RGB", wh).save(folder / f"{i}.png")
        rows.append(
            {"row_id": f"r{i}", "images": [f"{i}.png"], "image_wh": wh, "phrase": "x" * i, "gold": [0, 0, 9, 9]}
        )
    return rows


def placeholder_model(model, processor, questions, images, *, max_new_tokens, with_logprobs=False, synced_gpus=False):
    """As `generate_texts`: the completion names the questions of its batch, so another batch shows."""
    batch = sorted(len(question) for question in questions)
    return [
        {"text": f"{len(q)} {i[0].size} {batch}", "n_tokens": 1, "is_truncated": False}
        for q, i in zip(questions, images, strict=True)
    ]


def generate_from(rows, folder, *, sampling=None, **options):
    return generate_completions(
        rows,
        root=folder,
        task=load_task("grounding"),
        frame_for_row=frame_for_row,
        model=SimpleNamespace(device=torch.device("cpu")),
        processor=None,
        sampling=Sampling(max_new_tokens=8, batch_size=3, **sampling or {}),
        **options,
    )


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_ranks_together_make_what_one_process_makes(tmp_path, monkeypatch, world_size):
    monkeypatch.setattr(completions, "generate_texts", placeholder_model)
    rows = scene_rows(tmp_path, 11)
    alone = generate_from(rows, tmp_path)
    assert [one["row_id"] for one in alone] == [row["row_id"] for row in rows]
    parts = [generate_from(rows, tmp_path, rank=r, world_size=world_size) for r in range(world_size)]
    together = {one["row_id"]: one for part in parts for one in part}
    assert [together[row["row_id"]] for row in rows] == alone
    assert sum(map(len, parts)) == len(rows)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_in_step_make_equally_many_calls_and_no_more_completions(tmp_path, monkeypatch, world_size):
    """Four batches: under ZeRO-3 with the weights apart, a rank without one would leave the others waiting."""
    calls = []

    def counting_model(*asked, synced_gpus, temperature=0.0, **options):
        calls[-1] += synced_gpus
        return placeholder_model(*asked, **options)

    monkeypatch.setattr(completions, "generate_texts", counting_model)
    rows, parts = scene_rows(tmp_path, 11), []
    for rank in range(world_size):
        calls.append(0)
        parts += generate_from(
            rows, tmp_path, rank=rank, world_size=world_size, synced_gpus=True, sampling={"n_samples": 1}
        )
    assert calls == [2 * -(-4 // world_size)] * world_size
    assert sorted(one["row_id"] for one in parts) == sorted(2 * [row["row_id"] for row in rows])


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_samples_are_the_same_from_any_number_of_processes(tmp_path, monkeypatch, world_size):
    def drawing_model(model, processor, questions, images, *, temperature=0.0, **options):
        drawn = torch.rand(len(questions)).tolist() if temperature else [0] * len(questions)
        return [{"text": f"{temperature} {one}", "n_tokens": 1, "is_truncated": False} for one in drawn]

    monkeypatch.setattr(completions, "generate_texts", drawing_model)
    rows, sampling = scene_rows(tmp_path, 11), {"n_samples": 3, "temperature": 0.7, "seed": 5}
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    alone = generate_from(rows, tmp_path, sampling=sampling)
    assert torch.equal(torch.random.get_rng_state(), before), "an evaluation leaves the training's draws alone"
    torch.rand(3)
    assert [(one["row_id"], one["sample"]) for one in alone] == [(f"r{n}", s) for n in range(11) for s in range(4)]
    assert len({one["text"] for one in alone if one["sample"]}) == 33, "every sample is drawn anew"
    kept = [KeptBatches(tmp_path / "kept", FINGERPRINT) for _ in range(world_size)]
    parts = [
        generate_from(rows, tmp_path, rank=r, world_size=world_size, kept=kept[r], sampling=sampling)
        for r in range(world_size)
    ]
    together = sorted((one for part in parts for one in part), key=lambda one: (int(one["row_id"][1:]), one["sample"]))
    assert together == alone
    assert generate_from(rows, tmp_path, kept=KeptBatches(tmp_path / "kept", FINGERPRINT), sampling=sampling) == alone
    assert generate_from(rows, tmp_path, sampling=sampling | {"seed": 6}) != alone


def test_an_image_that_cannot_be_read_names_row_and_file(tmp_path, monkeypatch):
    monkeypatch.setattr(completions, "generate_texts", placeholder_model)
    rows = scene_rows(tmp_path, 2)
    (tmp_path / "1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"row 'r1': the image .*1\.png cannot be read"):
        generate_from(rows, tmp_path)
    with pytest.raises(UserError, match=r"row 'r9': the image .*none\.png is missing"):
        load_image(tmp_path / "none.png", what="row 'r9'")


def test_an_image_lies_as_its_orientation_says(tmp_path):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # EXIF orientation: rotate by a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg", what="test").size == (20, 30)


def test_an_evaluation_killed_at_any_instant_resumes_to_the_same_completions(tmp_path, monkeypatch):
    monkeypatch.setattr(completions, "generate_texts", placeholder_model)
    rows = scene_rows(tmp_path, 23)
    whole = generate_from(rows, tmp_path)
    generator = random.Random(0)
    n_generated = []

    def counting_model(model, processor, questions, images, **options):
        n_generated[-1] += 1
        return placeholder_model(model, processor, questions, images, **options)

    monkeypatch.setattr(completions, "generate_texts", counting_model)
    for number in range(20):
        folder = tmp_path / f"kept_{number}"
        world_size = generator.choice([1, 2, 3])
        n_generated.append(0)
        for rank in range(world_size):  # each process is killed somewhere: whole batches, and a part of a line
            generate_from(rows, tmp_path, rank=rank, world_size=world_size, kept=KeptBatches(folder, FINGERPRINT))
        for path in folder.iterdir():
            data = path.read_bytes()
            path.write_bytes(data[: generator.randrange(len(data) + 1)])
        n_kept = len(KeptBatches(folder, FINGERPRINT).done)
        n_generated.append(0)
        world_size = generator.choice([1, 2, 4])
        kept = [KeptBatches(folder, FINGERPRINT) for _ in range(world_size)]
        parts = [
            generate_from(rows, tmp_path, rank=rank, world_size=world_size, kept=kept[rank])
            for rank in range(world_size)
        ]
        made = [one for part in parts for one in part]
        assert sorted(made, key=lambda one: int(one["row_id"][1:])) == whole
        assert n_generated[-1] == 8 - n_kept  # no batch twice
        assert len(KeptBatches(folder, FINGERPRINT).done) == 8
    assert len(set(n_generated[1::2])) > 3  # the kills did fall on different instants


@pytest.mark.parametrize("name", FINGERPRINT)
def test_another_model_data_or_config_is_refused(tmp_path, name):
    KeptBatches(tmp_path, FINGERPRINT).add(0, [{"row_id": "r"}], rank=0)
    with pytest.raises(OtherEvaluationError, match=f"created with another {name} .*: {FINGERPRINT[name]} then, x now"):
        KeptBatches(tmp_path, FINGERPRINT | {name: "x"})


def test_damage_within_a_file_is_named(tmp_path):
    kept = KeptBatches(tmp_path, FINGERPRINT)
    kept.add(0, [{"row_id": "r"}], rank=2)
    kept.add(1, [{"row_id": "s"}], rank=2)
    path = tmp_path / "rank_002.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"batch": 0', b'"bat', 1))
    with pytest.raises(UserError, match=r"rank_002\.jsonl, line 1 is damaged"):
        KeptBatches(tmp_path, FINGERPRINT)


def test_a_line_end_inside_a_completion_is_no_end_of_a_line(tmp_path):
    text = "one\u2028two\nthree"
    KeptBatches(tmp_path, FINGERPRINT).add(0, [{"text": text}], rank=0)
    assert KeptBatches(tmp_path, FINGERPRINT).done == {0: [{"text": text}]}

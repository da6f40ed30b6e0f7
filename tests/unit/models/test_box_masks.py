"""Masks from boxes by models of the true architectures, small and with random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from safetensors.torch import load_file, save_file
from transformers import (
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
)

from vrft.cli.main import main
from vrft.errors import UserError
from vrft.models.box_masks import load_mask_model

SIDE, BOX = 128, [10, 12, 40, 44]
DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
POLYGON = [[12, 12], [40, 12], [40, 40], [12, 40]]


def save_sam(folder, dtype=torch.float32):
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_channels": 16, "mlp_dim": 16}
    config = SamConfig(
        vision_config={**vision, "image_size": SIDE, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 8},
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 4},
        mask_decoder_config={**DECODER, "iou_head_hidden_dim": 16},
    )
    SamModel(config).to(dtype).save_pretrained(folder)
    sides = {"height": SIDE, "width": SIDE}
    SamProcessor(SamImageProcessor(size={"longest_edge": SIDE}, pad_size=sides)).save_pretrained(folder)


def save_sam2(folder):
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 2],
        "window_positional_embedding_background_size": [2, 2],
        "global_attention_blocks": [3],
    }
    config = Sam2Config(
        vision_config={
            "backbone_config": backbone,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 16,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 4},
        mask_decoder_config={**DECODER, "iou_head_hidden_dim": 16},
    )
    Sam2Model(config).save_pretrained(folder)
    sides = {"height": SIDE, "width": SIDE}
    Sam2Processor(Sam2ImageProcessor(size=sides, mask_size={"height": 32, "width": 32})).save_pretrained(folder)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 100, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path, monkeypatch, image):
    """The current folder, with an image, a SAM, a case, and the same as a row and its completion."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    torch.manual_seed(0)
    save_sam("sam")
    image.save("a.png")
    case = {"image": "a.png", "width": 100, "height": 50, "shapes": [{"label": "target", "points": POLYGON}]}
    row = {"images": ["a.png"], "image_wh": [100, 50], "phrase": "it", "gold": [12, 12, 40, 40]}
    rows = [{**row, "row_id": name, "target_polygons": [POLYGON], "ignore_polygons": []} for name in ("r0", "r1", "r2")]
    texts = ["<think></think><answer>(10,12),(40,44)</answer>", "it", "<think></think><answer>(40,12),(10,44)</answer>"]
    (tmp_path / "cases.json").write_text(
        json.dumps([{**case, "pred_box": one} for one in (BOX, None, [40, 12, 10, 44])])
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    lines = (json.dumps({"row_id": f"r{n}", "text": text}) + "\n" for n, text in enumerate(texts))
    (tmp_path / "completions.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("save", [save_sam, save_sam2], ids=["SAM", "SAM 2"])
def test_a_box_becomes_a_mask_of_the_image(tmp_path, image, save):
    torch.manual_seed(0)
    save(tmp_path)
    mask_of = load_mask_model(str(tmp_path))
    mask = mask_of(image, BOX)
    assert (mask.shape, mask.dtype) == ((50, 100), bool)
    assert 0 < mask.mean() < 1
    assert (mask != mask_of(image, [50, 5, 95, 45])).any(), "the box is looked at"
    assert (mask == mask_of(image, BOX)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_used_in_full(tmp_path, image, dtype):
    torch.manual_seed(0)
    save_sam(tmp_path, dtype)
    assert load_mask_model(str(tmp_path))(image, BOX).any()


@pytest.mark.parametrize("save", [save_sam, save_sam2])
def test_a_weight_that_is_missing_is_a_message(tmp_path, save):
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "mask_decoder" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"mask_model={tmp_path}: .* the weight {gone} is missing"):
        load_mask_model(str(tmp_path))


def test_a_folder_without_such_a_model_is_a_message(tmp_path):
    with pytest.raises(UserError, match=r"mask_model=.* cannot be loaded .*facebook/sam-vit-huge"):
        load_mask_model(str(tmp_path))


def score(name, *arguments):
    assert main(["score", "protocol=reasonseg_lisa", *arguments, "protocol.n_resamples=5", f"out={name}"]) == 0
    with open(name, encoding="utf-8") as file:
        return json.load(file)


OWN = ("task=reasoning_grounding", "rows=rows.jsonl", "completions=completions.jsonl", "frame=pixels")


def test_completions_are_judged_as_the_same_boxes_in_a_file_of_cases(folder):
    for model in ([], ["mask_model=sam"]):
        cases = score("cases_scores.json", "cases=cases.json", *model)
        own = score("own_scores.json", *OWN, *model)
        assert [own["metrics"][name] for name in ("gIoU", "cIoU")] == list(cases["metrics"].values())
        assert [one["intersection"] for one in own["cases"]] == [one["intersection"] for one in cases["cases"]]
        assert own["metrics"]["accuracy@0.5"]["n"] == 3
        assert own["protocol"] == ("reasonseg_lisa_v1_mask_model" if model else "reasonseg_lisa_v1")
    assert cases["counts"]["cases_without_prediction"] == 1


def test_the_models_masks_are_what_is_judged(folder, image):
    """The same masks given as run lengths give the same figures; filled boxes give others."""
    mask = load_mask_model("sam")(image, BOX)
    lengths = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    written = {"size": lengths["size"], "counts": lengths["counts"].decode()}
    [first, *others] = json.loads((folder / "cases.json").read_text())
    given = [{**{key: value for key, value in first.items() if key != "pred_box"}, "pred_mask": written}, *others]
    (folder / "masks.json").write_text(json.dumps(given))
    by_model = score("a.json", "cases=cases.json", "mask_model=sam")
    assert by_model["metrics"] == score("b.json", "cases=masks.json")["metrics"]
    assert by_model["metrics"] != score("c.json", "cases=cases.json")["metrics"]


def test_what_lies_outside_the_image_is_no_mask(folder):
    [first, *_] = json.loads((folder / "cases.json").read_text())
    (folder / "cases.json").write_text(json.dumps([{**first, "pred_box": [100, 10, 140, 40]}]))
    assert score("a.json", "cases=cases.json", "mask_model=sam")["metrics"]["gIoU"]["value"] == 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: Image.new("RGB", (99, 50)).save(folder / "a.png"), "the image a.png is 99 × 50 pixels"),
        (lambda folder: (folder / "a.png").unlink(), "cases.json, case 0: there is no image a.png"),
    ],
)
def test_another_image_is_a_message(folder, capsys, spoil, words):
    spoil(folder)
    assert main(["score", "protocol=reasonseg_lisa", "cases=cases.json", "mask_model=sam", "out=a.json"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"target_polygons": POLYGON}, "r0: shape 0: points is [12, 12]"),
        ({"target_polygons": "x"}, "no target_polygons"),
        ({"target_polygons": [[[1e12, 0]]]}, "r0: shape 0: points is"),
        ({"ignore_polygons": [[]]}, "r0: shape 1: points is []"),
        ({"images": []}, "images is []"),
        ({"image_wh": [100_000, 100_000]}, "height and width are"),
    ],
)
def test_polygons_that_cannot_be_painted_are_a_message(folder, capsys, columns, words):
    [first, *others] = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join([json.dumps({**json.loads(first), **columns}), *others]) + "\n")
    assert main(["score", "protocol=reasonseg_lisa", *OWN, "out=a.json"]) == 2
    assert words in capsys.readouterr().err

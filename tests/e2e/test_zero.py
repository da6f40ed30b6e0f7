"""DeepSpeed's stages on two processes with images: DDP's weights, resumed to the bit, in files that others load."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torture.harness import differences
from transformers import AutoModelForImageTextToText

from vrft.cli.export import export, weight_names
from vrft.config.package_files import TINY_MODEL
from vrft.models.families import FAMILIES, part_of

FAMILY = FAMILIES["tiny"]

STAGES = ("zero1", "zero2", "zero3", "zero3_offload")
IN_EVERY_RUN = ("zero2", "zero3")
AT_SCALE = tuple(f"{stage}{setting}" for setting in ("", "+lora") for stage in STAGES)
IN_PARTS = ("zero2+vision", "zero2+projector", "zero2+language", "zero2+lora_but_vision", "zero3+lora_but_vision")
OF_FAMILIES = ("zero2+qwen2_vl", "zero3+qwen2_vl", "zero3+qwen2_5_vl", "zero3+qwen3_vl")
IN_FOUR_BITS = "zero2+qlora"
HAS_FOUR_BITS = importlib.util.find_spec("bitsandbytes") is not None
ALL, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def train_all(folder: Path, cases: tuple[str, ...]) -> Path:
    command = [sys.executable, str(Path(__file__).with_name("zero_stages.py")), str(folder), *cases]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    print(done.stdout)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    return train_all(tmp_path_factory.mktemp("few"), IN_EVERY_RUN)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    cases = (*AT_SCALE, *IN_PARTS, *OF_FAMILIES, *([IN_FOUR_BITS] if HAS_FOUR_BITS else ()))
    return train_all(tmp_path_factory.mktemp("many"), cases)


def assert_stage_holds(folder: Path, case: str) -> None:
    """Three steps end at DDP's weights, from step 2 again at the same bits, and transformers loads what is saved."""
    stage, _, setting = case.partition("+")
    folder, file = folder / (setting or "all"), ADAPTER if "lora" in setting else ALL
    ddp, weights = (load_file(folder / name / "checkpoints" / "last" / file) for name in ("none", stage))
    assert weights.keys() == ddp.keys()
    assert max((weights[name] - ddp[name]).abs().max().item() for name in ddp) <= 1e-5
    assert differences(folder / stage, folder / f"{stage}_resumed", last="checkpoint-3") == []
    steps = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3
    assert all(step["grad_norm"] > 0.01 and step["shared_prefix/fraction"] == 1.0 for step in steps)
    for name in ("last", "checkpoint-3"):
        assert_loads(folder / stage / "checkpoints" / name, file)


def assert_loads(checkpoint: Path, file: str) -> None:
    """The files have the base's names, and transformers finds them all where it looks for them."""
    base, saved = load_file(TINY_MODEL / "model.safetensors"), load_file(checkpoint / file)
    assert not list(checkpoint.glob("*.py")) + list(checkpoint.glob("*.bin")), "no code, no pickled settings"
    if file == ALL:
        assert saved.keys() == base.keys()
        assert max((saved[name] - base[name]).abs().max().item() for name in base) > 1e-5, "trained"
        model, told = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True
        )
        assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        embedding = model.get_input_embeddings().weight
        assert torch.equal(embedding, saved["model.embed_tokens.weight"])
    else:
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        loaded = {name: weight for name, weight in model.named_parameters() if "lora_B" in name}
        assert len(loaded) * 2 == len(saved)
        assert all(weight.abs().max() > 0 for weight in loaded.values())


@pytest.mark.parametrize("case", IN_EVERY_RUN)
def test_a_stage_trains_as_ddp_does_and_goes_on_to_the_same_bits(few, case):
    assert_stage_holds(few, case)


@pytest.mark.scale
@pytest.mark.parametrize("case", AT_SCALE)
def test_every_stage_does_with_all_weights_and_with_lora(many, case):
    assert_stage_holds(many, case)


@pytest.mark.scale
@pytest.mark.parametrize("case", IN_PARTS)
def test_parts_are_trained_under_a_stage_as_without_one(many, case):
    assert_stage_holds(many, case)
    stage, _, setting = case.partition("+")
    checkpoint = many / setting / stage / "checkpoints" / "last"
    if "lora" in setting:
        names = {name.removeprefix("base_model.model.") for name in load_file(checkpoint / ADAPTER)}
        assert {part_of(name, FAMILY) for name in names} == {"projector", "language"}
    else:
        assert parts_changed(checkpoint) == {setting}


@pytest.mark.scale
@pytest.mark.parametrize("case", OF_FAMILIES)
def test_weights_of_every_family_have_the_names_of_its_base(many, case):
    """Those that the hub's checkpoints have, by which vLLM knows them."""
    stage, _, family = case.partition("+")
    for name in ("last", "checkpoint-3"):
        assert weight_names(many / family / stage / "checkpoints" / name) == weight_names(many / family)
    assert {name.partition(".")[0] for name in weight_names(many / family)} <= {"model", "visual", "lm_head"}


@pytest.mark.scale
@pytest.mark.skipif(not HAS_FOUR_BITS, reason="needs bitsandbytes: pip install -e '.[qlora]'")
def test_an_adapter_on_four_bits_trains_goes_on_and_is_merged(many, tmp_path):
    assert_stage_holds(many, IN_FOUR_BITS)
    told = export(many / "qlora" / "zero2" / "checkpoints" / "last", tmp_path / "merged")
    assert told["is_merged"]
    assert weight_names(tmp_path / "merged") == weight_names(TINY_MODEL)


def parts_changed(checkpoint: Path) -> set[str]:
    """The parts in which a checkpoint's weights are not the base's."""
    base, model = (
        dict(AutoModelForImageTextToText.from_pretrained(path).named_parameters()) for path in (TINY_MODEL, checkpoint)
    )
    return {part_of(name, FAMILY) for name in base if not torch.equal(base[name], model[name])}


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_FOUR_BITS, reason="needs bitsandbytes: pip install -e '.[qlora]'")
@pytest.mark.parametrize("stage", ["none", "zero2"])
def test_an_adapter_on_four_bits_trains_on_a_gpu(vrft, tmp_path, stage):
    run_dir, out = tmp_path / "run", tmp_path / "merged"
    vrft(
        *("train", "experiment=digits_riddles", "debug=smoke", "model/peft=qlora", "model.dtype=bfloat16"),
        *(f"deepspeed={stage}", "launch.device=cuda", "evaluate.checkpoint=last", f"run.dir={run_dir}"),
    )
    vrft("export", f"model.path={run_dir / 'checkpoints' / 'last'}", f"out={out}")
    assert weight_names(out) == weight_names(TINY_MODEL)


@pytest.mark.scale
def test_ranks_with_unlike_numbers_of_batches_do_not_wait_for_each_other_for_ever(vrft, tmp_path):
    """Three batches on two processes: with the weights brought together nobody waits, though transformers' own loop
    would; with the weights apart (which is then TRL's path) both make equally many calls."""
    run = (
        *("train", "experiment=digits_riddles", "debug=smoke", "deepspeed=zero3", "launch=torchrun"),
        *("launch.nproc_per_node=2", "launch.device=cpu", "launch.watchdog_s=200", "trainer.max_steps=1"),
        *("evaluate.before=false", "evaluate.after=false", "evaluate.checkpoint=last", "dataset.n_validation=5"),
        *("memory.evaluation_batch_size=2", "memory.max_completion_length=24"),
    )
    apart = ("rollout=transformers", "+trainer.args.ds3_gather_for_generation=false")
    told = []
    for name, options in {"together": ["model.attention=eager"], "apart": apart}.items():
        vrft(*run, *options, f"run.dir={tmp_path / name}")
        steps = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        told.append([entry["validation/iou"] for entry in steps if "validation/iou" in entry])
    assert len(told[0]) == 2
    assert told[0] == pytest.approx(told[1], abs=1e-6)


@pytest.mark.scale
def test_an_adapter_of_a_stage_is_exported_by_the_command_line(vrft, many, tmp_path):
    checkpoint, out = many / "lora" / "zero3" / "checkpoints" / "last", tmp_path / "merged"
    done = vrft("export", f"model.path={checkpoint}", f"out={out}", "dtype=float32")
    assert "the adapter merged into its base: 81 tensors" in done.stdout
    assert weight_names(out) == weight_names(TINY_MODEL)
    merged, adapted = (
        AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval() for path in (out, checkpoint)
    )
    ids = torch.arange(10, 30)[None]
    assert (merged(input_ids=ids).logits - adapted(input_ids=ids).logits).abs().max() <= 1e-4
    refused = vrft("export", f"model.path={checkpoint}", f"out={out}", code=2)
    assert "exists and is not empty" in refused.stderr


@pytest.mark.parametrize("part", ["vision", "projector", "language"])
def test_one_part_is_trained_and_the_others_stay(healthy, part):
    others = [one for one in ("vision", "projector", "language") if one != part]
    few_steps = ("trainer.max_steps=2", "trainer.save_steps=2", "trainer.eval_steps=null", "evaluate.checkpoint=last")
    run_dir = healthy("grpo", *few_steps, f"model.freeze=[{','.join(others)}]")
    assert parts_changed(run_dir / "checkpoints" / "last") == {part}

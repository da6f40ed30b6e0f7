"""A plan of the true code on the meta device, and what makes it fit."""

from __future__ import annotations

import pytest
import torch
from configs import composed

from vrft.config.batch_sizes import batch_sizes
from vrft.config.schema import VLLM, Model
from vrft.config.section import with_values
from vrft.errors import UserError
from vrft.memory.architectures import PUBLISHED, architecture, make_model
from vrft.memory.batch import most_prompts
from vrft.memory.changes import changes_that_fit, first_changes
from vrft.memory.four_bits import loaded_bytes, pack
from vrft.memory.live_bytes import LiveBytes
from vrft.memory.parts import Counts
from vrft.memory.plan import image_size, make_plan, text_length
from vrft.memory.table import advice, plan_table
from vrft.memory.training_setup import Setup

TOTALS = {  # parameters, as the published checkpoints have them
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
}
ONLY_LAST = ("trainer.eval_steps=null", "evaluate.checkpoint=last")
LORA = {"r": 16, "lora_alpha": 32, "target_modules": r".*language_model.*\.(q_proj|v_proj)"}


def setup_of(*overrides: str) -> Setup:
    return composed("trainer.max_steps=2", *overrides).part(Setup)


def model(path: str, family: str, **options) -> Model:
    settings = {"path": path, "revision": None, "trust_remote_code": False, "dtype": "bfloat16", "attention": "sdpa"}
    settings |= {"family": family, "freeze": [], "peft": None, "quantization": None}
    return Model(**settings | options)


@pytest.fixture(scope="module")
def tiny():
    return setup_of("trainer.prompts_per_step=4", "memory.num_generations=4")


def planned(setup: Setup, **options):
    options = {"target": "cuda", "image_wh": (112, 84), "prompt_tokens": 100, "completion_tokens": 40} | options
    return make_plan(setup, **options)


@pytest.mark.parametrize("path", PUBLISHED)
def test_the_architectures_have_the_published_numbers_of_parameters(path):
    settings = model(path, PUBLISHED[path]["model_type"])
    weights = list(make_model(settings, architecture(settings)).parameters())
    assert sum(weight.numel() for weight in weights) == TOTALS[path]
    assert all(weight.is_meta and weight.dtype == torch.bfloat16 for weight in weights)


def test_qlora_keeps_the_language_model_of_the_7b_in_four_bits():
    """Of 28 layers the projections: q, o 3584 x 3584, k, v 512 x 3584, gate, up, down 18944 x 3584: 233,046,016 each.

    6,525,288,448 numbers of half a byte, a scale of 1 byte to 64 and one of 4 bytes to 16,384: 3,262,644,224 +
    101,957,632 + 1,593,088. The other 1,766,087,168 in bfloat16: 3,532,174,336. LoRA of rank 16, float32, beside.
    """
    path = "Qwen/Qwen2-VL-7B-Instruct"
    settings = model(path, "qwen2_vl", peft=LORA, quantization="nf4")
    found = Counts.of(make_model(settings, architecture(settings)))
    adapter = 28 * 16 * (3584 + 3584 + 3584 + 512)  # q: 3584 to 3584, v: 3584 to 512
    assert found.n_trained == adapter
    assert found.trained_bytes == 4 * adapter
    assert found.weight_bytes == 6_898_369_280 + 4 * adapter
    assert found.n_weights == TOTALS[path] + adapter


@pytest.mark.parametrize(
    ("n_rows", "group", "n_steps", "n_processes", "of_step", "of_process"),
    [
        (3, 4, 4, 1, 2, 3),  # rows 3, 4 and 5: the last of one group, two of the next
        (4, 6, 3, 1, 2, 2),  # rows 4 to 7
        (3, 6, 4, 1, 1, 2),  # a divisor of G: never two
        (8, 4, 2, 1, 2, 4),  # a multiple: none is cut
        (5, 4, 4, 1, 2, 5),  # 0 to 4, 5 to 9, 10 to 14, 15 to 19: of two each
        (1, 4, 8, 1, 1, 2),
        (6, 4, 1, 2, 2, 2),  # process 0: 4 + 2 rows, process 1: 2 + 4
        (2, 8, 1, 4, 1, 1),  # a group on four processes
        (3, 4, 2, 2, 2, 2),  # process 0: 4 + 2 rows as 3 + 3
        (8, 1, 1, 1, 8, 8),  # SFT
    ],
)
def test_the_most_prompts_of_a_micro_batch_by_hand(n_rows, group, n_steps, n_processes, of_step, of_process):
    assert most_prompts(n_rows, group, n_steps=n_steps, n_processes=n_processes) == (of_step, of_process)


def test_a_plan_of_qlora_takes_less_than_one_of_lora(tiny):
    lora = with_values(tiny, {"model.peft": LORA})
    whole = planned(lora).phases["update"]["weights"]
    qlora = with_values(lora, {"model.quantization": "nf4"})
    assert planned(qlora).phases["update"]["weights"] < 0.7 * whole


def test_a_layer_of_four_bits_is_written_out_whole_while_it_is_multiplied():
    layer = torch.nn.Linear(8, 4, bias=False)
    pack(torch.nn.ModuleList([layer]))
    inputs = torch.zeros(1, 8, requires_grad=True)
    with LiveBytes() as live:
        output = layer(inputs)
    assert (live.peak_bytes, live.total) == (4 * (8 * 4 + 4), output.nbytes)
    with LiveBytes() as live:
        output.backward(torch.ones(1, 4))
    assert live.peak_bytes >= 4 * (8 * 4 + 8)
    assert layer.weight.grad is None
    assert loaded_bytes(layer) == 32 // 2 + 1 + 4


def test_live_bytes_counts_what_is_alive_and_keeps_the_peak():
    with LiveBytes() as live:
        first = torch.zeros(1000)
        second = first.view(10, 100) + 1  # a view is no storage of its own
        with live.counting("other"):
            third = second.half()
        del first, second
        fourth = torch.zeros(500)
    assert live.peak == {"activations": 8000, "other": 2000}
    assert live.total == third.nbytes + fourth.nbytes == 4000


def test_knobs_move_the_plan_as_they_should(tiny):
    def step(**memory) -> int:
        changed = with_values(tiny, {f"memory.{name}": value for name, value in memory.items()})
        parts = planned(changed).phases["step"]
        return parts["activations"] + parts["vision"] + parts["logits"]

    whole = step()
    assert step(gradient_checkpointing=True) < whole
    assert step(completions_per_device=4) < step(completions_per_device=8) < whole
    alone = with_values(tiny, {"rollout.sharing": None})
    assert planned(alone).phases["step"]["vision"] > 3 * planned(tiny).phases["step"]["vision"]


def test_lora_and_a_frozen_tower_leave_less(tiny):
    language = with_values(tiny, {"model.freeze": ["vision", "projector"]})
    frozen = planned(language)
    assert frozen.n_trained < frozen.n_weights
    assert frozen.phases["step"].get("vision", 0) < planned(tiny).phases["step"]["vision"] / 2
    adapted = planned(with_values(language, {"model.peft": LORA}))
    assert adapted.n_trained < 0.05 * adapted.n_weights
    assert adapted.phases["update"]["optimizer"] == 8 * adapted.n_trained


def test_vllm_takes_its_share_of_the_gpu_and_a_server_none(tiny):
    for sleeps, phases in (
        (True, {"sampling"}),
        *((no, {"evaluation", "sampling", "step", "update"}) for no in (False, None)),
    ):
        vllm = VLLM(gpu_memory_utilization=0.25, sleep=sleeps)
        setup = with_values(tiny, {"rollout.name": "vllm_colocate", "rollout.vllm": vllm})
        found = planned(setup, gpu_bytes=8 * 2**30).phases
        assert {name for name, parts in found.items() if parts.get("vLLM") == 2 * 2**30} == phases
    server = with_values(setup, {"rollout.name": "vllm_server"})
    assert planned(server).phases.keys() == {"evaluation", "step", "update"}


def test_the_key_value_cache_of_a_shared_rollout_by_hand(tiny):
    """3 layers; keys and values of 2 heads, 32 wide, float32; 4 prompts of 100 tokens, and 16 rows of 64 (40 tokens, in
    steps of 64). Then scratch: keys and values of one layer in other layouts."""
    token = 3 * 2 * 2 * 32 * 4
    least = token * (4 * 100 + 16 * 64)
    assert least <= planned(tiny).phases["sampling"]["kv_cache"] <= 2 * least
    least = token * 16 * (100 + 40)
    alone = with_values(tiny, {"rollout.sharing": None})
    assert least <= planned(alone).phases["sampling"]["kv_cache"] <= 2 * least


def test_zero_3_brings_all_weights_together_to_sample():
    setup = setup_of("deepspeed=zero3", "launch=torchrun", "launch.nproc_per_node=2", *ONLY_LAST)
    setup = with_values(setup, {"deepspeed.config.zero_optimization.stage3_max_live_parameters": 1000})
    found = planned(setup)
    n_bytes = 4 * found.n_weights
    assert found.phases["sampling"]["weights"] + found.phases["sampling"]["buffers"] == n_bytes
    assert found.phases["evaluation"]["weights"] == n_bytes  # before and after the training it is whole
    assert "optimizer" not in found.phases["evaluation"]
    setup = with_values(setup, {"trainer.args.ds3_gather_for_generation": False})
    fewer = planned(setup).phases["sampling"]["buffers"]
    assert fewer == planned(setup).phases["step"]["buffers"]


def test_an_image_has_the_size_that_qwen_vl_utils_gives_it():
    setup = setup_of("model=qwen2_vl_2b", "deepspeed=zero2", "memory.max_pixels=200704")
    assert image_size(setup, (640, 427)) == (532, 364)  # known from the processor itself


def test_a_smaller_image_makes_a_shorter_prompt(tiny):
    """Of 112 x 84 pixels 8 x 6 tokens; under max_pixels = 3136 it is brought to 56 x 42: 4 x 3."""
    assert text_length(tiny, (112, 84), 100) == 100 - 48
    smaller = with_values(tiny, {"memory.min_pixels": 196, "memory.max_pixels": 3136})
    assert planned(smaller, prompt_tokens=None, text_tokens=52).shapes.prompt == 52 + 12
    assert text_length(tiny, (112, 84), 50) == 16  # a question


def test_an_image_that_no_processor_takes_is_refused(tiny):
    with pytest.raises(UserError, match=r"plan.image_wh is \[10000, 20\], which the image processor refuses: .*ratio"):
        image_size(tiny, (10000, 20))


def test_the_cheapest_changes_in_their_order():
    """A plan that shrinks with every knob: what is turned, and what is turned back."""
    setup = setup_of("model=qwen2_vl_2b", "deepspeed=zero2", "launch=torchrun", "launch.nproc_per_node=2")

    def takes(tried: Setup) -> float:
        memory, stage = tried.memory, tried.deepspeed.zero["stage"]
        per_row = 1.0 if memory.gradient_checkpointing else 4.0
        per_device = batch_sizes(tried.trainer, memory, tried.launch)["per_device_train_batch_size"]
        rows = per_device * memory.max_pixels / 401408
        states = 20.0 / (3 if stage == 3 else 1) / (4 if tried.model.peft else 1)
        return states + rows * per_row + memory.evaluation_batch_size / 64

    assert takes(setup) == 20 + 64 * 4 + 1

    def words(limit: float) -> list[str] | None:
        changes = changes_that_fit(setup, lambda tried: takes(tried) <= limit)
        return changes if changes is None else [change.words for change in changes]

    micro, checkpointing = "memory.completions_per_device", "memory.gradient_checkpointing=true"
    assert words(1000) == []
    assert words(160) == [f"{micro}=32"]  # 20 + 32 x 4 + 1; the evaluation's batch was not the matter
    assert words(23) == [f"{micro}=2", checkpointing]  # 20 + 2 + 1
    assert words(21.5) == ["memory.evaluation_batch_size=32", f"{micro}=1", checkpointing]  # 20 + 1 + 0.5
    assert words(9) == ["memory.evaluation_batch_size=16", f"{micro}=2", checkpointing, "deepspeed=zero3"]
    assert words(5) == [f"{micro}=2", checkpointing, "deepspeed=zero3", "model/peft=lora"]  # 1.7 + 2 + 1
    assert words(0.1) is None
    assert "no change of these knobs makes it fit: it takes at least 3.00 GiB; " in advice(None, 3 * 2**30)


def test_a_stage_with_keys_of_ones_own_is_known_and_keeps_them():
    own = "stage3_max_live_parameters"
    setup = setup_of(
        "model=qwen2_vl_2b", "deepspeed=zero3", f"+deepspeed.config.zero_optimization.{own}=1000",
        "launch=torchrun", "launch.nproc_per_node=2",
    )  # fmt: skip
    stages: list[dict] = []

    def fits(tried: Setup) -> bool:
        stages.append(tried.deepspeed.zero)
        return (tried.deepspeed.zero.get("offload_optimizer") or {}).get("device", "none") != "none"

    (change,) = changes_that_fit(setup, fits)
    assert change.words == "deepspeed=zero3_offload"
    assert all(stage["stage"] == 3 and stage[own] == 1000 for stage in stages)
    assert first_changes(setup)["ZeRO stage"] == change


def test_the_number_of_completions_is_touched_last():
    def fits(tried: Setup) -> bool:
        return tried.memory.num_generations <= 4

    (change,) = changes_that_fit(setup_of("trainer.prompts_per_step=4"), fits)
    assert change.words == "memory.num_generations=4"
    assert "1.4 times as noisy" in change.price


def test_a_table_of_all_phases(tiny):
    text = plan_table(planned(tiny))
    for word in (
        "prefill",
        "sampling",
        "step",
        "update",
        "weights",
        "gradients",
        "KV cache",
        "vision tower",
        "together",
    ):
        assert word in text


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    settings = model(str(tmp_path), "qwen2_vl")
    with pytest.raises(UserError, match="is a gpt2; vrft supports qwen2_5_vl, qwen2_vl, qwen3_vl"):
        architecture(settings)

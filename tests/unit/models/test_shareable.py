"""What is shared is a list of what is known: each kind of model, adapter and setting beyond it takes the stock path."""

from __future__ import annotations

import pytest
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from small_models import FAMILIES, small_model
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from vrft.models.shareable import sampling_fault, sharing_fault

LAYERS = ["q_proj", "v_proj"]


def test_the_three_families_are_shared_also_with_lora():
    for family in FAMILIES:
        model = small_model(family)
        assert sharing_fault(model, is_training=True) is None
        options = {"target_modules": LAYERS, "use_dora": True, "use_rslora": True, "modules_to_save": ["norm"]}
        assert sharing_fault(get_peft_model(model, LoraConfig(**options)), is_training=True) is None


def hybrid():
    text = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    vision = {"depth": 1, "num_heads": 2, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))


def sliding():
    model = small_model("qwen2_vl")
    model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    return model


def of_its_own_code():
    model = small_model("qwen2_vl")
    model.__class__ = type("Qwen2VLOfMine", (type(model),), {"__module__": "transformers_modules.mine"})
    return model


def text_alone():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=64, num_key_value_heads=2, **sizes))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hybrid, "qwen3_5 has layers of linear_attention"),
        (sliding, "layers of sliding_attention"),
        (of_its_own_code, "Qwen2VLOfMine"),
        (text_alone, "qwen2 "),
    ],
)
def test_a_model_that_is_not_known_is_not_shared(make, reason):
    assert reason in sharing_fault(make(), is_training=False)


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (LoraConfig(task_type="CAUSAL_LM", target_modules=LAYERS, alora_invocation_tokens=[1, 2]), "alora_invocation"),
        (LoraConfig(target_modules=LAYERS, layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PromptTuningConfig"),
        (IA3Config(target_modules=LAYERS, feedforward_modules=[]), "IA3Config"),
    ],
)
def test_an_adapter_that_is_not_known_is_not_shared(adapter, reason):
    model = small_model("qwen2_vl")
    model.peft_config = {"default": adapter}
    assert reason in sharing_fault(model, is_training=False)


def test_dropout_is_not_shared_while_it_is_active():
    adapted = get_peft_model(small_model("qwen2_vl"), LoraConfig(target_modules=LAYERS, lora_dropout=0.1))
    text = small_model("qwen2_vl", text_options={"attention_dropout": 0.1})
    vision = small_model("qwen2_vl")
    vision.base_model.visual.blocks[0].attn.attention_dropout = 0.1
    for model, where in ((adapted, "lora_dropout"), (text, "self_attn"), (vision, "visual")):
        assert where in sharing_fault(model, is_training=True)
        assert sharing_fault(model, is_training=False) is None


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"begin_suppress_tokens": [5]}, "begin_suppress_tokens"),
        ({"renormalize_logits": True}, "renormalize_logits"),
        ({"num_beams": 1, "no_repeat_ngram_size": 0, "output_scores": False, "cache_implementation": "static"}, None),
        # As published, and set by TRL: Qwen2.5-VL's near-greedy sampling
        ({"temperature": 1e-6, "repetition_penalty": 1.05, "top_k": 1, "do_sample": True}, None),
    ],
)
def test_what_a_checkpoint_says_of_sampling_counts_where_the_trainer_leaves_it_open(checkpoint, name):
    asked = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, repetition_penalty=1.0, max_new_tokens=4)
    fault = sampling_fault(asked, GenerationConfig(**checkpoint))
    assert fault is None if name is None else name in fault

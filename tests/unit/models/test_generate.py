"""Answers outside of training: greedy or sampled as asked, whatever the checkpoint's own settings."""

from __future__ import annotations

import pytest
from small_models import picture, small_model, small_processor

from vrft.models.generate import generate_texts


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"guidance_scale": 2.0}, {"no_repeat_ngram_size": 1}])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # by the shared loop, by transformers
def test_a_checkpoints_sampling_settings_are_not_used(settings, attention):
    model, processor = small_model("qwen2_vl"), small_processor("qwen2_vl")
    model.set_attn_implementation(attention)
    arguments = (model, processor, ["find it", "count"], [[picture(56, 56)], [picture(84, 56)]])
    expected = generate_texts(*arguments, max_new_tokens=8)
    model.generation_config.update(**settings)
    before = model.generation_config.to_dict()
    assert generate_texts(*arguments, max_new_tokens=8) == expected
    assert model.generation_config.to_dict() == before

"""Where sharing cannot stand in for TRL's path, the trainer takes TRL's path, and says why."""

from __future__ import annotations

import pytest
import torch
from small_models import make_trainer, picture, prompt_rows, reward_by_ids, small_model
from transformers import (
    AutoTokenizer,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)
from trl import GRPOConfig, GRPOTrainer

from vrft.config.package_files import TINY_MODEL
from vrft.train.trl_overrides import SharedPrefixTrainer
from vrft.train.unlike_trl import trainer_fault, unlike_trl

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GRID = [[28, 56], [56, 28], [56, 56]]
TEMPLATE = (
    "{% for turn in messages %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def llava(trainer_class, folder):
    """A trainer of a random LLaVA-NeXT, whose images are cut into tiles."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL, padding_side="left")
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=GRID
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    config = LlavaNextConfig(
        text_config={"model_type": "mistral", "vocab_size": len(tokenizer), "num_key_value_heads": 2, **SIZES},
        vision_config={"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, **SIZES},
        image_token_id=image_token_id,
        image_grid_pinpoints=GRID,
    )
    torch.manual_seed(0)
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=2,
        steps_per_generation=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        learning_rate=0.1,
        optim="sgd",
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        gradient_checkpointing=False,
    )
    return trainer_class(
        model=LlavaNextForConditionalGeneration(config),
        args=arguments,
        reward_funcs=reward_by_ids,
        train_dataset=prompt_rows(2).map(lambda _, n: {"images": [picture(40, 50, n)]}, with_indices=True),
        processing_class=processor,
    )


def test_another_vision_language_model_trains_as_in_trl(tmp_path, capsys):
    weights = []
    for trainer_class in (GRPOTrainer, SharedPrefixTrainer):
        trainer = llava(trainer_class, tmp_path)
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert capsys.readouterr().err.count("prompts are not shared: a llava_next") == 1


@pytest.mark.parametrize(
    ("name", "value"), [("tools", [print]), ("environment_factories", {None: dict}), ("rollout_func", print)]
)
def test_what_writes_into_completions_is_trls(tmp_path, name, value):
    trainer = make_trainer(SharedPrefixTrainer, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(2), tmp_path)
    assert trainer_fault(trainer) is None
    setattr(trainer, name, value)
    assert "write into completions" in trainer_fault(trainer)


def test_fields_that_are_not_known_are_trls(tmp_path):
    trainer = make_trainer(SharedPrefixTrainer, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(2), tmp_path)
    ids = torch.ones(2, 4, dtype=torch.long)
    for fields, reason in (({}, None), ({"num_tiles": None}, None), ({"image_sizes": ids}, "image_sizes")):
        fault = unlike_trl(trainer, trainer.model, (ids, ids, fields, None))
        assert fault is None if reason is None else reason in fault

"""Training and evaluation show the model the same tokens and the same pixels."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from trl.data_utils import apply_chat_template, prepare_multimodal_messages

from vrft.config.package_files import TINY_MODEL
from vrft.errors import UserError
from vrft.models.chat_template import chat, render_prompt
from vrft.models.generate import set_thought_opening
from vrft.models.load import load_processor
from vrft.tasks import load_task, task_names
from vrft.tasks.boxes import Frame

FRAME = Frame("norm1000", (56, 56), (56, 56))
ROW = {"category": "seven", "phrase": "two plus three minus one", "gold": "seven"}


@pytest.mark.parametrize("name", task_names())
def test_trl_and_decode_build_the_same_prompt(name):
    processor = load_processor(str(TINY_MODEL), min_pixels=3136, max_pixels=401408)
    question = load_task(name).question(ROW, FRAME)
    image = Image.new("RGB", (56, 56), "navy")
    # TRL: the user's turn as a plain string, the image moved in front of it
    messages = prepare_multimodal_messages([{"role": "user", "content": question}], images=[image])
    theirs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ours = processor(text=[render_prompt(processor, question, 1)], images=[image], return_tensors="pt")
    assert torch.equal(theirs["input_ids"], ours["input_ids"])
    assert torch.equal(theirs["pixel_values"], ours["pixel_values"])
    assert (ours["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 16


def test_a_prefilled_thought_ends_the_prompt_and_begins_no_completion():
    processor = load_processor(str(TINY_MODEL), min_pixels=3136, max_pixels=401408)
    plain_prompt = render_prompt(processor, "?", 1)
    set_thought_opening(processor, is_prefilled=True)
    assert render_prompt(processor, "?", 1) == plain_prompt + "<think>"
    gold = load_task("grounding", thinking="prefilled").gold({"gold": [0, 0, 28, 28], "thought": "left"}, FRAME)
    example = apply_chat_template(
        {"prompt": chat("?", 1), "completion": [{"role": "assistant", "content": [{"type": "text", "text": gold}]}]},
        processor,
    )  # as TRL's collator for SFT does
    assert example["prompt"].endswith("<think>")
    assert example["completion"].startswith("left</think><answer>")
    with pytest.raises(UserError, match=r"task\.thinking=prefilled"):  # a template that opens the thought itself
        set_thought_opening(processor, is_prefilled=False)
    set_thought_opening(processor, is_prefilled=True)
    assert render_prompt(processor, "?", 1) == plain_prompt + "<think>"  # not twice

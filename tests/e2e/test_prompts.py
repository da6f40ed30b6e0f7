"""Training and evaluation show the model the same tokens and the same pixels."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from vrft.boxes import Frame
from vrft.configure import TINY_MODEL
from vrft.models.decode import render_prompt
from vrft.models.load import load_processor
from vrft.tasks import load_task, task_names

ROW = {"category": "seven", "phrase": "two plus three minus one", "gold": "seven"}


@pytest.mark.parametrize("name", task_names())
def test_trl_and_decode_build_the_same_prompt(name):
    processor = load_processor(str(TINY_MODEL), min_pixels=3136, max_pixels=401408)
    question = load_task(name).question(ROW, Frame("norm1000", (56, 56), (56, 56)))
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

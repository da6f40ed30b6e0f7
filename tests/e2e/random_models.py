"""Models of the three families with two random layers, at their real vocabulary, patch and merge sizes.

Only the widths and depths are small; classes, processors and the tokenizer are those of the published models.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from small_models import FAMILIES
from transformers import AutoProcessor, PreTrainedTokenizerFast, Qwen2VLImageProcessor

WIDTH, N_HEADS = 64, 4
VOCABULARY = 151_936  # rows of the embedding; the tokenizer has 151,657
TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(folder: Path, family: str, *, tokenizer_gz: Path, seed: int = 0) -> Path:
    """Save a random model of the family and its processor, as they lie on the hub."""
    config_class, model_class, processor_class, video_class, patch = FAMILIES[family]
    half = WIDTH // N_HEADS // 2
    mrope = {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": 2,
        "head_dim": WIDTH // N_HEADS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, **mrope},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "pad_token_id": 151643,
    }
    vision = {"depth": 2, "num_heads": N_HEADS, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 112}
    if family == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0, 1]}
    torch.manual_seed(seed)
    model = model_class(config_class(text_config=text, vision_config=vision, tie_word_embeddings=True, **TOKENS))
    model.save_pretrained(folder)
    write_processor(folder, processor_class, video_class, patch, tokenizer_gz=tokenizer_gz)
    AutoProcessor.from_pretrained(folder)
    return folder


def write_processor(folder: Path, processor_class, video_class, patch: int, *, tokenizer_gz: Path) -> None:
    """Save the family's processor around the true tokenizer."""
    (folder / "tokenizer.json").write_bytes(gzip.decompress(tokenizer_gz.read_bytes()))
    special = json.loads(tokenizer_gz.with_name("tokenizer_config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token=special["eos_token"],
        pad_token=special["pad_token"],
        additional_special_tokens=["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    )
    size = {"shortest_edge": 3136, "longest_edge": 12_845_056}
    sides = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    processor_class(
        image_processor=Qwen2VLImageProcessor(**sides, size=dict(size)),
        tokenizer=tokenizer,
        video_processor=video_class(**sides, size=dict(size)),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)

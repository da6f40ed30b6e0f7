"""The tiny model's parts, built from nothing: a tokenizer, a processor and a Qwen2-VL of about a million parameters.

All three are the stock classes, so that the folder they are saved to loads like any other. What is unusual is the
tokenizer: numbers are one token each (0 to 1000 in steps of 20, confidences in steps of 0.05), pieces of text may
span spaces, and sentences that are constant in the questions are one token each. That keeps a prompt at 40 to 60
tokens; the price is that the tiny model reads questions only in wordings it was trained on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

IMAGE_SIDE = 56
PATCH, MERGE = 7, 2
END, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SYSTEM_MESSAGE = "You are a helpful assistant."
COORDINATES = tuple(str(number) for number in range(0, 1001, 20))
CONFIDENCES = tuple(f"{number / 20:.2f}" for number in range(21))
MERGED_PIECES = 320  # vocabulary beside bytes and added tokens: about 60 numbers, the rest pieces of text

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\n" + SYSTEM_MESSAGE + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' or part.type == 'image_url' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The format of Qwen2-VL's own template: a default system message, each turn between <|im_start|> and <|im_end|>."""

_SENTENCE_END = re.compile(r"(?<=[.:?!])(?= )|(\n)")
_NUMBERS_APART = Regex(r"\p{N}+(?:\.\p{N}+)?|[^\p{N}\n]+|\n")


def constant_pieces(questions: Sequence[str], names: Sequence[str], *, share: float = 0.05) -> list[str]:
    """Return the sentences, and pieces of sentences between `names`, that recur in at least `share` of the questions.

    Pieces shorter than 12 characters are left to the byte pairs. Sorted, longest first.

    >>> questions = ["Find every seven in the image. Give boxes.", "Find every two in the image. Give boxes."]
    >>> constant_pieces(questions, ["two", "seven"], share=0.6)
    [' in the image.', ' Give boxes.']
    """
    name = re.compile(rf"\b(?:{'|'.join(names)})\b")
    sentences = [[s for s in _SENTENCE_END.split(question) if s] for question in questions]
    counts = Counter(s for in_question in sentences for s in set(in_question))
    whole = {s for s, count in counts.items() if count >= share * len(questions)}
    pieces = Counter(
        p for in_question in sentences for p in {p for s in in_question if s not in whole for p in name.split(s)}
    )
    whole |= {p for p, count in pieces.items() if count >= share * len(questions)}
    return sorted((p for p in whole if len(p) >= 12), key=lambda p: (-len(p), p))


def build_tokenizer(
    questions: Sequence[str], completions: Sequence[str], *, names: Sequence[str], other_text: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer for these texts that can still write any text.

    names: words that are one token wherever they stand alone. other_text: further text to learn byte pairs from.
    """
    sentences = [SYSTEM_MESSAGE, *constant_pieces(questions, names)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_NUMBERS_APART, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = re.compile("|".join([*map(re.escape, (*sentences, *SPECIAL_TOKENS, *TAGS)), rf"\b(?:{'|'.join(names)})\b"]))
    roles = ["system\n", "user\n", "assistant\n"] * 200
    numbers = [number for number in (*COORDINATES, *CONFIDENCES) for _ in range(200)]
    texts = [piece for text in (*questions, *completions, *other_text) for piece in added.split(text) if piece]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGED_PIECES, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *roles, *numbers], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in (*TAGS, *sentences)])
    tokenizer.add_tokens([AddedToken(n, special=False, normalized=False, single_word=True) for n in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2VLProcessor:
    """Return Qwen2-VL's processor for images of about 56 x 56 pixels, which become 16 image tokens."""
    vision = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    size = {"shortest_edge": IMAGE_SIDE**2, "longest_edge": IMAGE_SIDE**2}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision, size=dict(size)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**vision, size=dict(size), cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2VLForConditionalGeneration:
    """Return the untrained model, float32, drawn from `seed`; torch's global generator is left as it was."""

    def token_id(token: str) -> int:
        return tokenizer.convert_tokens_to_ids(token)

    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            # head dimension 32, so 16 frequencies: 4 turn with time, 6 with the row, 6 with the column.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": token_id(END),
            "pad_token_id": token_id(PAD),
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": 128,
            "mlp_ratio": 2,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=token_id(END), pad_token_id=token_id(PAD), max_new_tokens=64
    )
    return model


def single_token_ids(tokenizer: PreTrainedTokenizerFast, words: Iterable[str]) -> list[int]:
    """Return the id of each word. Raises ValueError naming a word that is not one token."""
    ids = []
    for word in words:
        encoded = tokenizer.encode(word, add_special_tokens=False)
        if len(encoded) != 1:
            raise ValueError(f"{word!r} is {len(encoded)} tokens in the tiny tokenizer, not one")
        ids.append(encoded[0])
    return ids

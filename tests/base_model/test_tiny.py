"""The tiny model: its folder loads like any other, its tokenizer keeps what rewards read, its fast pass is the
stock."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from base_model.examples import BACKGROUND, FRAME, ExampleMaker, cell_classes, cells_of_boxes, load_tasks
from base_model.losses import FastForward, pretraining_losses
from base_model.model import CONFIDENCES, COORDINATES, TAGS, build_model, constant_pieces, single_token_ids
from base_model.muon import Muon, orthogonalise
from base_model.pretrain import learning_rate_factor, pretrain
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

import vrft
from vrft.data.digits import KINDS, build, compose_row
from vrft.data.digits.scenes import DIGIT_NAMES, draw_scene
from vrft.models.chat_template import chat, render_prompt
from vrft.models.generate import generate_texts, text_ends
from vrft.tasks import load_task

FOLDER = Path(vrft.__file__).parent / "tiny_qwen2_vl"


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return Qwen2VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_the_shipped_folder_is_small_and_readable_by_everyone():
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in files)
    assert (FOLDER / "README.md").is_file()


def test_the_shipped_model_picks_the_asked_digit_of_three(model, processor, tmp_path):
    task = load_task("grounding")
    options = {"domain": "clean", "k_shot": 1, "n_validation": 1, "n_test": 60}
    rows = build(options, task=task, out_dir=tmp_path, seed=0)["test"]
    images = [[Image.open(tmp_path / row["images"][0])] for row in rows]
    questions = [task.question(row, FRAME) for row in rows]
    texts = [c["text"] for c in generate_texts(model, processor, questions, images, max_new_tokens=40)]
    parsed = [task.parse(text, row, FRAME) for text, row in zip(texts, rows, strict=True)]
    assert all(task.format_term(one, row) == 1.0 for one, row in zip(parsed, rows, strict=True))
    picked = [task.metrics["pick_rate"](one, row) for one, row in zip(parsed, rows, strict=True)]
    assert np.mean(picked) >= 0.85  # measured 0.9 and more of 300; chance is 0.33


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # the second takes transformers' own loop
def test_log_probabilities_are_those_of_the_tokens_written(model, processor, tmp_path, attention):
    """Against one forward pass over question and completion."""
    task = load_task("grounding")
    options = {"domain": "clean", "k_shot": 1, "n_validation": 1, "n_test": 3}
    rows = build(options, task=task, out_dir=tmp_path, seed=0)["test"]
    images = [[Image.open(tmp_path / row["images"][0])] for row in rows]
    questions = ["?", *(task.question(row, FRAME) for row in rows[1:])]  # of two lengths: one row is padded
    model.set_attn_implementation(attention)
    made = generate_texts(model, processor, questions, images, max_new_tokens=40, with_logprobs=True)
    model.set_attn_implementation("sdpa")
    assert len({one["n_tokens"] for one in made}) > 1, "rows end at several steps"
    for question, image, one in zip(questions, images, made, strict=True):
        ends, logprobs = zip(*one["token_logprobs"], strict=True)
        prompt = render_prompt(processor, question, 1)
        inputs = processor(text=[prompt + one["text"]], images=image, return_tensors="pt")
        n_written = len(processor.tokenizer.encode(one["text"], add_special_tokens=False))
        assert n_written == one["n_tokens"] - 1 == len(ends)  # without the end token
        pieces = [one["text"][first:last] for first, last in pairwise((0, *ends))]
        assert pieces == [processor.tokenizer.decode([token]) for token in processor.tokenizer.encode(one["text"])]
        with torch.no_grad():
            expected = model(**inputs).logits[0].float().log_softmax(-1)
        ids = inputs["input_ids"][0]
        own = [expected[p - 1, ids[p]].item() for p in range(len(ids) - n_written, len(ids))]
        assert list(logprobs) == pytest.approx(own, abs=1e-3)
        assert min(own) < max(own) <= 0


def test_characters_are_placed_whatever_tokens_write_them(processor):
    text = "狗 (1,2) 🐕‍🦺 né."
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    ends = text_ends(ids, processor.tokenizer, begin=7)
    assert len(ids) > len(text), "bytes"
    assert (ends, ends[-1]) == (sorted(ends), 7 + len(text))
    opening = processor.tokenizer.encode("狗 (", add_special_tokens=False)
    assert ends[len(opening) - 1] == 7 + len("狗 (")
    assert ends[:3] == [8, 8, 8], "three bytes of one character"


@pytest.mark.parametrize(
    "text",
    [
        "<think>two plus three is five.</think><answer>(40,120),(300,460)</answer>",  # tags survive decoding
        "<answer>[{'Position': [0, 20, 1000, 980], 'Confidence': 0.90}]</answer>",
        "someone alone, 12345 and 0.123",  # names only as whole words; other numbers byte by byte
        "Grüße, 世界!\n\n",
    ],
)
def test_text_survives_the_tokenizer(processor, text):
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_names_tags_and_numbers_are_one_token_each(processor):
    words = (*DIGIT_NAMES, *TAGS, *COORDINATES, *CONFIDENCES)
    assert len(set(single_token_ids(processor.tokenizer, words))) == len(words) == 10 + 4 + 51 + 21
    with pytest.raises(ValueError, match="'seventeen' is"):
        single_token_ids(processor.tokenizer, ["seventeen"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thinking", ["think", "none"])
def test_a_prompt_is_short(processor, kind, thinking):
    """Fails when a task's wording has changed since the base was trained: then `make base` is due."""
    row, scene = compose_row(kind, 3, pool="test", domain="clean", rng=np.random.default_rng(0))
    question = load_tasks()[kind, thinking].question(row, FRAME)
    text = processor.apply_chat_template(chat(question, 1), add_generation_prompt=True, tokenize=False)
    ids = processor(text=[text], images=[Image.fromarray(scene.pixels)])["input_ids"][0]
    assert ids.count(processor.image_token_id) == 16
    assert len(ids) <= 50


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        (  # an image in front of the text, and the default system message
            chat("Hello?", 1),
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hello?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (  # plain strings, and a system message of one's own
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_chat_template_writes_qwens_format(processor, messages, rendered):
    assert processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == rendered


def test_an_assistant_turn_is_closed(processor):
    text = processor.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False
    )
    assert text.endswith("<|im_start|>assistant\nb<|im_end|>\n")


def test_the_fast_pass_equals_the_stock_one(model, processor):
    batch = ExampleMaker(processor).draw_batch(6, np.random.default_rng(0))
    model.set_attn_implementation("eager")
    images = [Image.fromarray(pixels.numpy()) for pixels in batch.pixels]
    inputs = processor.image_processor(images=images, return_tensors="pt")
    is_text = batch.ids != processor.tokenizer.pad_token_id
    is_image = (batch.ids == processor.image_token_id).int()
    with torch.no_grad():
        fast = model.lm_head(FastForward(model, processor)(batch)[0])
        stock = model(input_ids=batch.ids, attention_mask=is_text.long(), mm_token_type_ids=is_image, **inputs).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(fast[is_text], stock[is_text], rtol=1e-4, atol=1e-4)


def test_an_examples_weights_cover_its_completion_and_sum_to_one(processor):
    batch = ExampleMaker(processor).draw_batch(16, np.random.default_rng(1))
    torch.testing.assert_close(batch.weights.sum(dim=1), torch.ones(16))
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    last = [int(row.nonzero().max()) for row in batch.weights]
    assert all(int(batch.ids[i, position + 1]) == end for i, position in enumerate(last))


def test_cells_speak_of_the_digit_that_covers_them():
    scene = draw_scene((7,), pool="test", domain="clean", sizes=(20, 44), rng=np.random.default_rng(0))
    assert set(cell_classes(scene)) == {7, BACKGROUND}
    cells = cells_of_boxes(np.array([[0, 0, 14, 28], [13, 13, 16, 16]])).reshape(2, 4, 4)
    assert cells[0].nonzero()[0].tolist() == [0, 1]  # two full cells, one below the other
    assert cells[1].sum() == 1  # covers no cell to a fifth: its fullest one stands for it
    assert cells[1, 1, 1]


@pytest.mark.parametrize("shape", [(3, 40, 24), (2, 24, 40)])  # tall and wide
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    matrices = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(matrices)
    assert 0.5 < values.min() < values.max() < 1.3


def test_muon_walks_downhill():
    weight = torch.nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    before = float((weight.detach() ** 2).sum())
    optimizer = Muon([weight], lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert float((weight.detach() ** 2).sum()) < before / 4


def test_pretraining_lowers_every_loss_and_repeats_itself(processor):
    maker = ExampleMaker(processor)
    batch = maker.draw_batch(16, np.random.default_rng(7))

    def losses(model):
        model.set_attn_implementation("eager")
        found = pretraining_losses(
            FastForward(model, processor), batch, name_ids=maker.name_ids, background=torch.zeros(1)
        )
        return [float(term.detach()) for term in (found.text, found.cells, found.attention)]

    trained = [build_model(processor.tokenizer, seed=0) for _ in range(2)]
    before = losses(trained[0])
    for model in trained:
        pretrain(model, processor, n_steps=6, batch_size=4, seed=0)
    after = losses(trained[0])
    assert all(late < early for late, early in zip(after, before, strict=True))
    assert after == losses(trained[1])


def test_the_random_start_is_the_seeds_and_leaves_torchs_generator_alone(processor):
    state = torch.random.get_rng_state()
    one, same, other = (build_model(processor.tokenizer, seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_learning_rate_warms_up_and_ends_at_nothing():
    assert learning_rate_factor(0, 100) == pytest.approx(1 / 40)
    assert learning_rate_factor(40, 100) == 1.0
    assert learning_rate_factor(100, 100) == pytest.approx(0.0)


def test_constant_pieces_keeps_what_recurs_and_splits_at_names():
    questions = [f"Find the {name} in the image: it is there. Give its one box." for name in ("one", "two", "six")]
    # "one" also stands in a constant sentence, which must stay whole; the pieces beside a name are kept without it.
    assert constant_pieces(questions, ["one", "two", "six"], share=0.5) == [
        " Give its one box.",
        " in the image:",
        " it is there.",
    ]

"""Rollouts and evaluations by vLLM, with stand-ins for it: what goes to it, and what is made of what it gives back.

vLLM itself is asked in tests/e2e/test_vllm_engine.py, where it is installed.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import trl.trainer.grpo_trainer
from configs import composed
from small_models import FAMILIES, make_trainer, picture, prompt_rows, small_model, small_processor
from trl import GRPOConfig

from vrft.config import vllm_checks
from vrft.config.package_files import TINY_MODEL
from vrft.config.schema import VLLM
from vrft.config.section import with_values
from vrft.config.trl_arguments import trainer_arguments
from vrft.errors import UserError
from vrft.evaluate.completions import Sampling, generate_completions
from vrft.models import families
from vrft.models.load import load_processor
from vrft.models.vllm import VLLMEngine, as_seen, needs_no_resize
from vrft.run.vllm_checks import check_server
from vrft.tasks import load_task
from vrft.tasks.boxes import Frame
from vrft.train.grpo import ResumableSharingVLLM, ResumableVLLM

SIZES = [(640, 427), (33, 250), (112, 84), (1000, 999)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image_wh", SIZES)
def test_vllm_finds_nothing_to_resize_and_sees_the_same_pixels(family, image_wh):
    limits = {"min_pixels": 3136, "max_pixels": 50_000}
    processor = small_processor(family)
    processor.image_processor.size = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
    image = picture(*image_wh)
    seen = as_seen(image, processor)
    assert seen.size == families.seen_size(image_wh, families.FAMILIES[family], **limits)
    assert np.array_equal(as_seen(seen, processor), seen)
    hub = small_processor(family)  # a checkpoint's own limits: nearly none
    assert needs_no_resize(seen.size, hub)
    ours, theirs = processor.image_processor(image), hub.image_processor(seen)
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    hub.image_processor.size = {"shortest_edge": 1, "longest_edge": 5000}
    assert not needs_no_resize(seen.size, hub)


SERVER = types.SimpleNamespace(get_server_info=lambda: {"model_config": {"logprobs_mode": "processed_logprobs"}})


class StandIn:
    """In the place of TRL's `VLLMGeneration`: writes completions that depend on the prompt alone."""

    def __init__(self, model, processing_class, **fields):
        self.fields, self.processor = fields, processing_class
        self.n_synced, self.images = 0, []

    def sync_weights(self):
        self.n_synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        self.images += [image for own in images for image in own]
        for ids, own in zip(prompts, images, strict=True):
            n_tokens = {"colocate": len(own), "server": sum(image.width * image.height for image in own) // 28**2}
            assert ids.count(self.processor.image_token_id) == n_tokens[self.fields["mode"]]
        end = self.processor.tokenizer.eos_token_id
        completions = [[20 + row % 4, 30 + sum(ids) % 5, 40 + row, end] for row, ids in enumerate(prompts)]
        return prompts, completions, [[[-2.0]] * len(ids) for ids in completions], None


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_rollouts_by_vllm_train_as_trl_does_with_and_without_sharing(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(StandIn, "vllm_client", SERVER, raising=False)
    monkeypatch.setattr(trl.trainer.grpo_trainer, "VLLMGeneration", StandIn)
    rows = prompt_rows(4, image_sizes=((100, 75), (50, 60)))
    model, trained = small_model("qwen2_vl"), {}
    vllm = {"use_vllm": True, "vllm_mode": mode, "vllm_importance_sampling_mode": "token_truncate", "max_steps": 2}
    for trainer_class in (ResumableVLLM, ResumableSharingVLLM):
        own = {"must_share": True} if trainer_class is ResumableSharingVLLM else {}
        trainer = make_trainer(trainer_class, copy.deepcopy(model), "qwen2_vl", rows, tmp_path, **vllm, **own)
        trainer.train()
        engine = trainer.vllm_generation
        assert engine.n_synced == 2
        assert {image.size for image in engine.images} == {(112, 84), (56, 56)}
        logged = [entry for entry in trainer.state.log_history if "reward" in entry]
        trained[trainer_class] = (logged, dict(trainer.model.named_parameters()))
    (theirs, their_weights), (ours, our_weights) = trained.values()
    assert [entry["shared_prefix/fraction"] for entry in ours] == [1.0, 1.0]
    assert [entry["reward"] for entry in ours] == [entry["reward"] for entry in theirs]
    before = dict(model.named_parameters())
    moved = max((before[name] - their_weights[name]).abs().max().item() for name in before)
    apart = max((our_weights[name] - their_weights[name]).abs().max().item() for name in before)
    assert moved > 1e-4
    assert apart < 1e-3 * moved


def test_trl_takes_the_settings():
    config = composed("trainer.max_steps=1", "memory.max_completion_length=40", "memory.max_prompt_length=60")
    colocate = VLLM(gpu_memory_utilization=0.4, tensor_parallel_size=1, max_model_len=None, sleep=True)
    server = VLLM(host="node1", port=8001, group_port=51217, timeout_s=9.0)
    made = {
        name: trainer_arguments(with_values(config, {"rollout.name": name, "rollout.vllm": vllm}), Path("out"))
        for name, vllm in (("vllm_colocate", colocate), ("vllm_server", server), ("transformers", None))
    }
    arguments = {name: GRPOConfig(**one) for name, one in made.items()}
    one = arguments["vllm_colocate"]
    assert (one.use_vllm, one.vllm_mode, one.vllm_gpu_memory_utilization) == (True, "colocate", 0.4)
    assert (one.vllm_max_model_length, one.vllm_enable_sleep_mode) == (100, True)
    one = arguments["vllm_server"]
    assert (one.vllm_mode, one.vllm_server_base_url, one.vllm_group_port) == ("server", "http://node1:8001", 51217)
    assert not arguments["transformers"].use_vllm


# --- evaluation ------------------------------------------------------------------------------------------------------


class Answers:
    """In the place of `vllm.LLM`: writes a text, and stops where it is long."""

    def __init__(self, **fields):
        self.fields, self.asked = fields, []

    def generate(self, prompts, wishes, use_tqdm):
        self.asked += zip(prompts, wishes, strict=True)
        tokenizer = load_processor(str(TINY_MODEL), min_pixels=3136, max_pixels=3136).tokenizer
        texts = ["<answer>(20,40),(60,80)</answer>", "six plus four is ten"]
        outputs = []
        for text, wish in zip(texts, wishes, strict=False):
            ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][: wish.max_tokens]
            logprobs = [{one: types.SimpleNamespace(logprob=-0.5)} for one in ids]
            outputs.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=ids, logprobs=logprobs)]))
        return outputs


def test_the_engine_answers_as_transformers_does(tmp_path, monkeypatch):
    wish = functools.partial(types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=Answers, SamplingParams=wish))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    processor = load_processor(str(TINY_MODEL), min_pixels=3136, max_pixels=3136)
    engine = VLLMEngine(
        str(TINY_MODEL), dtype="float32", image_token_id=5, max_model_len=99, gpu_memory_utilization=0.5
    )
    rows = [{"row_id": n, "images": [f"{n}.png"], "phrase": "seven", "image_wh": [100, 80]} for n in "ab"]
    for number, row in enumerate(rows):
        picture(100, 80, number).save(tmp_path / row["images"][0])
    ask = functools.partial(
        generate_completions, rows, root=tmp_path, task=load_task("grounding"), processor=processor, model=engine,
        frame_for_row=lambda row: Frame("norm1000", (100, 80), (56, 42)),
    )  # fmt: skip
    first, second = ask(sampling=Sampling(40, 2, with_logprobs=True))
    assert (first["text"], first["is_truncated"]) == ("<answer>(20,40),(60,80)</answer>", False)
    assert first["n_tokens"] == len(first["token_logprobs"]) + 1
    assert first["token_logprobs"][-1] == [len(first["text"]), -0.5]
    prompt, wishes = engine.llm.asked[0]
    assert prompt["prompt"].count("<|image_pad|>") == 1
    assert [one.size for one in prompt["multi_modal_data"]["image"]] == [
        families.seen_size((100, 80), families.FAMILIES["tiny"], min_pixels=3136, max_pixels=3136)
    ]
    assert (wishes.temperature, wishes.logit_bias, wishes.seed) == (0.0, {5: -100.0}, None)
    assert processor.tokenizer.eos_token_id in wishes.stop_token_ids
    assert ask(sampling=Sampling(2, 2))[1] | {"text": ""} == {
        "row_id": "b", "sample": 0, "text": "", "n_tokens": 2, "is_truncated": True
    }  # fmt: skip
    drawing = Sampling(40, 2, n_samples=1)
    drawn = [[one.seed for _, one in engine.llm.asked[-2:]] for _ in range(2) if ask(sampling=drawing)]
    assert drawn[0] == drawn[1], "the same seeds in every process"
    assert drawn[0][0] != drawn[0][1]
    assert second["text"] == "six plus four is ten"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "device", "found"),
    [
        ({}, "cuda", None),
        ({}, "cpu", "needs a GPU"),
        ({"trainer.name": "sft"}, "cpu", None),  # samples nothing
        ({"rollout.name": "transformers", "rollout.evaluate": True}, "cuda", "generates by transformers"),
        ({"rollout.evaluate": True}, "cuda", "is for `vrft evaluate`"),
        ({"rollout.evaluate": True, "evaluate.train": False}, "cuda", None),
        ({"rollout.evaluate": True, "evaluate.train": False, "rollout.name": "vllm_server"}, "cuda", "in the process"),
        ({"rollout.vllm.tensor_parallel_size": 3}, "cuda", "does not divide launch.nproc_per_node=4"),
        ({"rollout.vllm.gpu_memory_utilization": 1.5}, "cuda", "a share of a GPU's memory"),
        (
            {"rollout.vllm": None},
            "cuda",
            "needs rollout.vllm.gpu_memory_utilization, rollout.vllm.tensor_parallel_size;",
        ),
        (
            {"rollout.name": "vllm_server", "rollout.vllm.host": None},
            "cuda",
            "needs rollout.vllm.host; choose the group",
        ),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch, changes, device, found):
    vllm = {"gpu_memory_utilization": 0.3, "tensor_parallel_size": 1}
    vllm |= {"host": "127.0.0.1", "port": 8000, "group_port": 51216, "timeout_s": 240.0}
    usual = {"rollout.name": "vllm_colocate", "rollout.vllm": VLLM(**vllm), "model.path": "ORG/NAME"}
    config = with_values(composed(), usual | {"launch.nproc_per_node": 4})
    monkeypatch.setattr(vllm_checks.importlib.util, "find_spec", lambda package: package)  # not before composing
    faults = list(vllm_checks.vllm_faults(with_values(config, changes), device=device))
    assert bool(faults) == bool(found), faults
    assert all(found in fault for fault in faults)


@pytest.mark.parametrize(
    ("served", "info", "found"),
    [
        (None, None, "no vLLM server answers"),
        ("ORG/OTHER", {}, "serves ORG/OTHER, but model.path is ORG/NAME"),
        ("ORG/NAME", None, "cannot be given new weights"),
        ("ORG/NAME", {"weight_transfer_config": None}, "cannot be given new weights"),
        ("ORG/NAME", {"weight_transfer_config": {"backend": "nccl"}}, None),
    ],
)
def test_a_server_that_will_not_do_is_named(served, info, found):
    answers = {"/v1/models": {"data": [{"id": served, "root": served}]}} if served else {}
    if info is not None:
        answers["/server_info"] = {"vllm_config": info}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path.partition("?")[0])
            self.send_response(200 if answer else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments):
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = VLLM(host="127.0.0.1", port=server.server_port)
    try:
        if found:
            with pytest.raises(UserError, match=found):
                check_server(settings, "ORG/NAME")
        else:
            check_server(settings, "ORG/NAME")
    finally:
        server.shutdown()
        server.server_close()

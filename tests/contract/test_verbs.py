"""Every verb with every model file, trainer and adapter: refused for what the verb does, and for nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hydra import compose

from vrft.cli.verbs import VERBS, groups
from vrft.config.freeze import freeze, freeze_values, plain
from vrft.config.work import WORK
from vrft.errors import UserError

GROUPS = groups()
WORDS = {"predict": ["predict.image=photo.jpg", "predict.ask='the red cup'"]}  # that a verb cannot do without
STEPS = {"max_steps": 1, "epochs": None}
OWN_SECTIONS = ("run", "evaluate", "predict", "probe", "plan")  # in which the verbs' files differ

pytestmark = pytest.mark.usefixtures("hydra_reads_the_tree")


def put_together(models: list[str], trainers: list[str]) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """The composed values of each verb × model × trainer × adapter.

    Hydra takes a tenth of a second for each, so it composes models with trainers for `train` alone; sections of
    verbs and adapters, which depend on neither, are put in.
    """
    own = {verb: plain(compose(verb, WORDS.get(verb, []))) for verb in WORK}
    adapters = {name: plain(compose("train", [f"model/peft={name}"]))["model"] for name in GROUPS["model/peft"]}
    found = {}
    for model, trainer in itertools.product(models, trainers):
        trained = plain(compose("train", [f"model={model}", f"trainer={trainer}"]))
        for verb, adapter in itertools.product(WORK, adapters):
            sections = {name: own[verb][name] for name in OWN_SECTIONS if name in own[verb]}
            wanted = {key: adapters[adapter][key] for key in ("peft", "quantization")}
            found[verb, model, trainer, adapter] = {**trained, **sections, "model": trained["model"] | wanted}
    return found


def refusal_of(verb: str, values: dict[str, Any]) -> str:
    """What the verb refuses; nothing if it does not."""
    try:
        freeze_values(values, verb=verb, device="cuda", is_remote=True)
    except UserError as error:
        return str(error)
    return ""


def test_every_verb_takes_every_model_and_trainer():
    found = put_together(GROUPS["model"], GROUPS["trainer"])
    n_models, n_trainers = len(GROUPS["model"]), len(GROUPS["trainer"])
    assert len(found) == 6 * n_models * n_trainers * len(GROUPS["model/peft"]) >= 6 * 8 * 8 * 4
    for (verb, model, trainer, adapter), values in found.items():
        steps = {"trainer": values["trainer"] | STEPS}
        refusal = refusal_of(verb, values | steps)
        is_lost = values["model"]["dtype"] == "bfloat16" and adapter == "none"  # AdamW's small steps
        if verb in ("train", "probe", "plan") and is_lost:
            assert "bfloat16, in which AdamW" in refusal, (verb, model, trainer, adapter)
            assert refusal.count("\n  - ") == 1, refusal
        else:
            assert refusal == "", (verb, model, trainer, adapter)


def test_only_a_training_has_to_say_how_long_it_is():
    for verb in WORK:
        values = plain(compose(verb, ["model=qwen2_vl_2b", "model/peft=lora", *WORDS.get(verb, [])]))
        assert ("trainer.max_steps is None" in refusal_of(verb, values)) == (verb in ("train", "probe", "plan")), verb


def test_what_is_put_together_is_what_hydra_composes():
    found = put_together(["qwen2_vl_2b"], ["sft"])
    for verb in WORK:
        words = ["model=qwen2_vl_2b", "trainer=sft", "model/peft=qlora", *WORDS.get(verb, [])]
        composed, made = plain(compose(verb, words)), found[verb, "qwen2_vl_2b", "sft", "qlora"]
        assert {**composed, "run": {}} == {**made, "run": {}}, verb  # run.dir has the time of day in it


def test_the_verbs_of_the_table_are_those_that_use_a_model():
    assert set(WORK) == {name for name, verb in VERBS.items() if verb.schema is None}
    assert len(WORK) == 6


@pytest.mark.parametrize("verb", WORK)
def test_an_adapter_is_judged_and_asked_but_not_trained_on(verb, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    words = [f"model.path={tmp_path}", "model=qwen2_vl_2b", *WORDS.get(verb, [])]
    refusal = refusal_of(verb, plain(compose(verb, words)))
    assert ("an adapter, which can be judged but not trained on" in refusal) == (verb in ("train", "probe", "plan"))


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["launch=torchrun", "launch.nproc_per_node=5"], "cannot share evenly"),
        (["memory.num_generations=1"], "a group needs at least 2"),
        (["alarms.rules.kl.action=stop_keep_best", "trainer.eval_steps=null"], "no checkpoint is the best"),
    ],
)
def test_an_evaluation_is_not_refused_for_a_training_that_it_does_not_make(words, fault):
    with pytest.raises(UserError, match=fault):
        freeze(compose("train", words))
    assert freeze(compose("evaluate", words), verb="evaluate").derived.per_device_train_batch_size >= 1


def test_packages_for_weights_are_needed_where_weights_are_loaded(monkeypatch):
    monkeypatch.setattr("vrft.config.model_checks.has_four_bits", lambda: False)
    for verb, work in WORK.items():
        values = plain(compose(verb, ["model=qwen2_vl_2b", "model/peft=qlora", *WORDS.get(verb, [])]))
        values["trainer"] |= STEPS
        if work.loads_weights:
            with pytest.raises(UserError, match="needs bitsandbytes"):
                freeze_values(values, verb=verb)
        else:
            freeze_values(values, verb=verb)
    assert [verb for verb, work in WORK.items() if not work.loads_weights] == ["check", "plan"]


@pytest.mark.parametrize("task", sorted({*GROUPS["task"]} - {"own"}))
def test_every_protocol_that_a_refusal_offers_is_taken(task):
    misfit = "classification" if task != "classification" else "grounding"
    with pytest.raises(UserError, match="cannot judge") as refused:
        freeze(compose("train", [f"task={task}", f"protocol={misfit}"]))
    [line] = [line for line in str(refused.value).splitlines() if "protocols that fit: " in line]
    offered = line.partition("protocols that fit: ")[2].split(", ")
    assert len(offered) >= 1
    if task == "detection":
        assert offered == ["protocol=coco_asked", "protocol=coco_all", "protocol=coco_present", "protocol=rows"]
    for protocol in offered:
        assert freeze(compose("train", [f"task={task}", protocol])).protocol.name == protocol.partition("=")[2]

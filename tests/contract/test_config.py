"""Every file of the config tree composes and passes the checks; what does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from vrft.cli.score import config_faults
from vrft.cli.verbs import VERBS, groups, verb_help
from vrft.config import vllm_checks
from vrft.config.freeze import freeze, freeze_plain, plain
from vrft.config.package_files import config_folder
from vrft.config.schema import Config
from vrft.config.verb_schema import AuditConfig, RewardCasesConfig, ScoreConfig
from vrft.errors import UserError, shape_faults
from vrft.tasks import load_task, task_names
from vrft.tasks.reward import RewardFunction, weights_for
from vrft.tasks.reward_terms import RewardOptions

GROUPS = groups()
LEAST = {  # so that a glob that finds nothing cannot pass
    "dataset": 10, "debug": 1, "deepspeed": 5, "experiment": 12, "launch": 3, "logging": 4, "memory": 4, "model": 8,
    "model/peft": 4, "protocol": 10, "recipe/grpo": 1, "recipe/sft": 1, "reward": 4, "reward/options": 1, "rollout": 4,
    "sweep": 6, "task": 8, "trainer": 8, "alarms": 1, "others": 2,
}  # fmt: skip
PROTOCOLS = {
    "detection": "coco_present",
    "open_vocabulary_detection": "coco_present",
    "classification": "classification",
    **dict.fromkeys(("counting", "pointing", "mixed", "own"), "rows"),
}
JUDGED_BY = {"coco_all": "detection", "coco_asked": "detection", "counting": "counting"}
SCORE_ONLY = ("lvis_federated", "coco_exist_map")  # judges files of predictions, not rows alone
HUB_MODEL = "model.path=SOME/MODEL"  # a hub name: no folder is looked for


pytestmark = pytest.mark.usefixtures("hydra_reads_the_tree")


def frozen(*overrides: str, verb: str = "train") -> Config:
    config = compose(verb, [*overrides])
    return freeze(config)


def test_every_group_was_found():
    assert GROUPS.keys() == LEAST.keys()
    for group, least in LEAST.items():
        assert len(GROUPS[group]) >= least, group


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group, names in GROUPS.items() for name in names if not group.startswith("recipe/")],
)
def test_every_file_composes_and_passes(group, name, monkeypatch):
    monkeypatch.setattr("vrft.config.model_checks.has_four_bits", lambda: True)
    overrides = ["model=tiny", HUB_MODEL, f"{group}={name}"]
    if group == "task" and name in PROTOCOLS:
        overrides.append(f"protocol={PROTOCOLS[name]}")
    if group == "protocol":
        task = next(
            (task for task, protocol in PROTOCOLS.items() if protocol == name), JUDGED_BY.get(name, "grounding")
        )
        overrides.append(f"task={task}")
    if group == "dataset" and "dataset.path" in OmegaConf.missing_keys(compose("train", overrides)):
        overrides.append("dataset.path=rows.jsonl")
    if name == "flowers":
        overrides.append("dataset.classes=classes.txt")
    if name == "own":
        overrides += ["task.name=vrft.tasks.counting.CountingTask", "trust_code=[vrft.tasks.counting]"]
    if group == "model":
        overrides += ["trainer.max_steps=1", "deepspeed=zero2"]  # which the bfloat16 models need
    if name in ("vllm_colocate", "vllm_server"):
        monkeypatch.setattr(vllm_checks.importlib.util, "find_spec", lambda package: None)
        with pytest.raises(UserError, match=f"rollout={name} needs the package vllm.*pip install 'vrft"):
            frozen(*overrides)
        monkeypatch.setattr(vllm_checks.importlib.util, "find_spec", lambda package: package)
        overrides.append("launch.device=cuda")
    if name in SCORE_ONLY:
        with pytest.raises(UserError, match=f"protocol={name} (.* cannot judge task=grounding|needs a map)"):
            frozen(*overrides)
        return
    config = frozen(*overrides)
    assert config.derived.per_device_train_batch_size >= 1


@pytest.mark.parametrize(("written", "read"), [("on", "on"), ("true", "on"), ("auto", "auto")])
def test_sharing_is_read_as_yaml_writes_it(written, read):
    assert frozen(HUB_MODEL, f"rollout.sharing={written}").rollout.sharing == read


@pytest.mark.parametrize("name", GROUPS["trainer"])
def test_every_trainer_has_settings_for_the_tiny_model(name):
    assert frozen(HUB_MODEL, f"trainer={name}").trainer.learning_rate == 1e-4


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
@pytest.mark.parametrize("trainer", ["grpo", "sft"])
def test_every_experiment_trains_by_both_methods(experiment, trainer):
    config = frozen(f"experiment={experiment}", HUB_MODEL, f"trainer={trainer}")
    assert config.trainer.name == trainer
    assert ("beta" in config.trainer.args) == (trainer == "grpo")


def test_the_published_recipe_is_the_papers():
    config = frozen("experiment=virft_coco_8_cate_4_shot", "launch=torchrun", "launch.nproc_per_node=8")
    trainer, memory = config.trainer, config.memory
    assert (trainer.learning_rate, trainer.prompts_per_step) == (1e-6, 16)  # 8 GPUs x 1 x accumulation 2
    assert trainer.args["beta"] == 0.04
    assert trainer.args["loss_type"] == "grpo"
    assert trainer.args["use_bias_correction_kl"] is False
    assert (memory.num_generations, memory.max_pixels, memory.max_prompt_length) == (8, 401408, 1024)
    assert config.rollout.temperature == 1.0
    assert config.deepspeed.zero["stage"] == 3
    assert config.derived.per_device_train_batch_size * config.derived.gradient_accumulation_steps == 16


def test_a_group_from_the_command_line_beats_the_experiment():
    config = frozen("experiment=virft_coco_8_cate_4_shot", "model=qwen2_5_vl_3b", "memory=gpu_24gb")
    assert (config.model.family, config.memory.num_generations) == ("qwen2_5_vl", 4)


def test_sft_of_the_demo_differs_from_rft_in_the_trainer_alone():
    rft, sft = (
        frozen("experiment=digits_riddles", HUB_MODEL),
        frozen("experiment=digits_riddles", HUB_MODEL, "trainer=sft"),
    )
    assert (sft.trainer.max_steps, sft.trainer.sft_thought) == (80, "empty")
    differing = {section for section in Config.model_fields if getattr(rft, section) != getattr(sft, section)}
    assert differing == {"run", "trainer", "derived"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # a value of the wrong type
        (["memory.num_generations=many"], ["memory.num_generations is 'many'", "an integer"]),
        (["model.dtype=float16"], ["model.dtype", "bfloat16 or float32"]),
        (["run.resume=1"], ["run.resume", "true or false"]),
        # a key that is not there
        (["+launch.nproc=2"], ["launch has no key 'nproc'", "nproc_per_node"]),
        (["+launch.partition=gpu"], ["launch has no key 'partition'"]),  # which only launch=slurm has
        (["launch=torchrun", "launch.nnodes=2"], ["launch.rdzv_endpoint is None", "HOST:PORT of machine 0"]),
        (
            ["launch=torchrun", "launch.nnodes=2", "launch.node_rank=2", "launch.rdzv_endpoint=a:1"],
            ["launch.node_rank is 2", "one from 0 to 1"],
        ),
        (["launch=torchrun", "launch.rdzv_id='a,is_host=1'"], ["launch.rdzv_id is 'a,is_host=1'", "a word"]),
        (["+trainer.args.bta=0.1"], ["trainer.args.bta", "did you mean beta?"]),
        (["+trainer.args.packing=true"], ["it belongs to trainer=sft"]),
        (["trainer=sft", "+trainer.args.beta=0.1"], ["trainer.args.beta", "it belongs to trainer=grpo"]),
        (["+trainer.args.num_iterations=two"], ["trainer.args.num_iterations is 'two'", "an integer"]),
        (["+trainer.args.num_generations=4"], ["is set from memory.num_generations"]),
        (["+trainer.args.save_only_model=true"], ["trainer.args.save_only_model", "the run could not be resumed"]),
        # pairs that do not fit
        (["task=classification", "protocol=classification", "reward=iou_only"], ["reward=iou_only", "reward=strict"]),
        (["+reward.weights.iuo=1"], ["'iuo'", "known terms: accuracy"]),
        (["reward.weights.iou=-1"], ["reward.weights.iou is -1", "a number from 0"]),
        (["reward.weights.iou=inf"], ["reward.weights.iou is inf", "a number from 0"]),
        (["+reward.weights_for.countin.iou=1"], ["'countin'", "did you mean counting?", "known tasks: classification"]),
        (["protocol=coco_present"], ["cannot judge task=reasoning_grounding", "protocol=grounding"]),
        (["+task.subject=cat"], ["task=reasoning_grounding does not take"]),
        (["task.name=reasoning"], ["task.name is 'reasoning'", "known tasks: classification"]),
        (["+trainer.sft_thought=gold"], ["only trainer=sft reads"]),
        (["launch.nproc_per_node=2"], ["choose torchrun"]),
        (["model.family=qwen3"], ["model.family is 'qwen3'", "qwen3_vl"]),
        (["trainer.eval_steps=null"], ["evaluate.checkpoint=last"]),
        (["rollout.sharing=of"], ["rollout.sharing is 'of'", "auto or on"]),
        (["rollout.sharing=on", "model.attention=eager"], ["rollout.sharing=on", "model.attention=sdpa"]),
        (
            ["rollout.sharing=on", "model/peft=lora", "model.peft.lora_dropout=0.1"],
            ["rollout.sharing=on", "model.peft.lora_dropout=0.1", "rollout.sharing=auto"],
        ),
        (
            ["rollout.sharing=on", "+trainer.args.neftune_noise_alpha=0"],  # whose noise is drawn all the same
            ["trainer.args.neftune_noise_alpha=0"],
        ),
        (
            ["rollout.sharing=on", "+trainer.args.neftune_noise_alpha=5"],
            ["rollout.sharing=on", "trainer.args.neftune_noise_alpha=5", "rollout.sharing=auto"],
        ),
        (["rollout.sharing=null"], ["rollout.sharing is null", "rollout=transformers"]),
        (["~rollout.sharing"], ["rollout.sharing is null", "rollout=transformers"]),
        (
            ["rollout.sharing=on", "memory.completions_per_device=1"],
            ["rollout.sharing=on", "memory.completions_per_device=1", "2 or more"],
        ),
        (["rollout=transformers", "+rollout.sharing=auto"], ["rollout.sharing is auto", "only rollout=shared_prefix"]),
        # what is trained, and how
        (["model.freeze=[vision,projector,language]"], ["model.freeze has vision, projector and language", "nothing"]),
        (["model.freeze=[tower]"], ["model.freeze is ['tower']", "vision or projector or language"]),
        (["model/peft=lora", "model.freeze=[language]"], ["layers of language alone", "model/peft=lora_all"]),
        (["model/peft=lora", "+model.peft.exclude_modules=a", "model.freeze=[vision]"], ["exclude_modules", "freeze"]),
        (["model/peft=qlora"], ["model.quantization is nf4", "pip install 'vrft[qlora]'"]),
        (["model/peft=qlora", "deepspeed=zero3"], ["does not go with ZeRO-3", "deepspeed=zero2"]),
        (["model.quantization=nf4"], ["cannot be trained", "model/peft=qlora"]),
        (["model.quantization=int3"], ["model.quantization is 'int3'", "nf4"]),
        (["deepspeed=zero2", "deepspeed.config.zero_optimization.stage=4"], ["stage is 4", "1, 2 or 3 is needed"]),
        (
            ["deepspeed=zero3", "deepspeed.config.zero_optimization.stage3_gather_16bit_weights_on_model_save=false"],
            ["stage3_gather_16bit_weights_on_model_save must be true"],
        ),
        # out of range
        (["memory.num_generations=1"], ["at least 2"]),
        (["memory.max_pixels=100"], ["memory.min_pixels=3136 exceeds memory.max_pixels=100"]),
        (["rollout.temperature=0"], ["rollout.temperature is 0", "above 0"]),
        (["protocol=coco_all", "task=detection", "protocol.temperature=0"], ["protocol.temperature is 0", "above 0"]),
        (["protocol=coco_all", "task=detection", "protocol.n_samples=0"], ["protocol.n_samples is 0", "at least 1"]),
        (["protocol=coco_all", "protocol.score_source=best"], ["protocol.score_source", "token_probability"]),
        (["trainer.epochs=1"], ["trainer.max_steps is 40 and trainer.epochs is 1"]),
        (["model.path=./nowhere"], ["model.path is ./nowhere", "does not exist"]),
        # alarms
        (["alarms.window=0"], ["alarms.window is 0", "at least 1"]),
        (["alarms.non_finite=warn"], ["alarms.non_finite is 'warn'", "off or stop or stop_keep_best"]),
        (["alarms.rules.kl.action=shout"], ["alarms.rules.kl.action is 'shout'", "off or warn or stop"]),
        (["alarms.rules.kl.above=much"], ["alarms.rules.kl.above is 'much'", "a number"]),
        (["+alarms.rules.kl.abov=2"], ["alarms.rules.kl has no key 'abov'", "did you mean above?"]),
        (["alarms.rules.unreadable.of=worst"], ["alarms.rules.unreadable.of is 'worst'", "value or first or best"]),
        (["+alarms.rules.mine={above: 1, action: warn, hint: look}"], ["alarms.rules.mine.metric is missing"]),
        (["+alarms.rules.mine={metric: loss, above: 1}"], ["alarms.rules.mine.action is", "alarms.rules.mine.hint is"]),
        (["+alarms.rules.mine=3"], ["alarms.rules.mine is 3"]),
        (["alarms.rules.kl.above=null"], ["alarms.rules.kl has neither above nor below"]),
        (
            ["alarms.rules.kl.action=stop_keep_best", "trainer.eval_steps=null", "evaluate.checkpoint=last"],
            ["alarms.rules.kl.action is stop_keep_best", "trainer.eval_steps is null", "choose stop"],
        ),
        (
            ["alarms.non_finite=stop_keep_best", "trainer.eval_steps=null", "evaluate.checkpoint=last"],
            ["alarms.non_finite is stop_keep_best", "trainer.eval_steps is null"],
        ),
        # nothing given
        (["dataset=json"], ["dataset.path must be given"]),
        # batch sizes that cannot be derived: the arithmetic, and what would do
        (
            ["launch=torchrun", "launch.nproc_per_node=5"],
            ["8 × 8 = 64 completions", "launch.nproc_per_node=5", "trainer.prompts_per_step=10 would do"],
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value[-1], str) and "=" in value[-1] else "",
)
def test_what_cannot_run_is_refused_by_name(overrides, words, monkeypatch):
    monkeypatch.setattr("vrft.config.model_checks.has_four_bits", lambda: False)
    with pytest.raises(UserError) as refused:
        frozen(HUB_MODEL, *overrides)
    for word in words:
        assert word in str(refused.value)


def test_all_faults_are_shown_together():
    with pytest.raises(UserError) as refused:
        frozen(HUB_MODEL, "reward=iou_only", "task=classification", "memory.num_generations=1", "+trainer.args.bta=1")
    assert len(str(refused.value).splitlines()) == 1 + 4  # reward, protocol, G, TRL's key


def test_an_uneven_share_of_a_step_is_listed_with_the_other_faults():
    faulty = ["launch=torchrun", "launch.nproc_per_node=5", "trainer.eval_steps=null", "+trainer.args.bta=1"]
    with pytest.raises(UserError) as refused:
        frozen(HUB_MODEL, *faulty, "+trainer.args.steps_per_generation=2")
    assert len(str(refused.value).splitlines()) == 1 + 3
    for word in ("trainer.prompts_per_step=10 would do", "evaluate.checkpoint=last", "did you mean beta?"):
        assert word in str(refused.value)


def test_a_step_of_no_prompts_is_a_message_whatever_else_is_said():
    with pytest.raises(UserError, match=r"trainer.prompts_per_step is 0; at least 1 is needed$"):
        frozen(HUB_MODEL, "trainer.prompts_per_step=0", "+trainer.args.steps_per_generation=2")


def keys_of(values: dict, prefix: str = "") -> list[str]:
    """The dotted keys of nested mappings, those of mappings too."""
    own = [
        [f"{prefix}{name}", *(keys_of(value, f"{prefix}{name}.") if isinstance(value, dict) else [])]
        for name, value in values.items()
    ]
    return [key for keys in own for key in keys]


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
@pytest.mark.parametrize("trainer", ["grpo", "sft"])
def test_a_config_holds_what_was_composed(experiment, trainer):
    composed = plain(compose("train", [f"experiment={experiment}", HUB_MODEL, f"trainer={trainer}"]))
    held = Config.model_validate(composed).plain()
    assert held == composed
    assert sorted(keys_of(held)) == sorted(keys_of(composed))
    assert yaml.safe_dump(held) == yaml.safe_dump(composed)  # 1 stays 1, and 1.0 stays 1.0


def test_a_config_is_written_in_the_order_that_it_always_had():
    written = yaml.safe_dump(frozen("experiment=digits_riddles").plain(), sort_keys=False)
    sections = {
        section: list(values) for section, values in yaml.safe_load(written).items() if isinstance(values, dict)
    }
    task, dataset = sections.pop("task"), sections.pop("dataset")  # these belong to their own modules
    assert (task[0], dataset[0]) == ("name", "builder")
    assert sections == {
        "run": ["name", "dir", "seed", "resume"],
        "evaluate": ["before", "train", "after", "checkpoint", "also", "titles", "others"],
        "model": [
            "path", "revision", "family", "dtype", "attention", "trust_remote_code", "peft", "quantization", "freeze"
        ],
        "reward": ["options", "name", "weights", "weights_for"],
        "trainer": [
            "name", "prompts_per_step", "max_steps", "epochs", "eval_steps", "save_steps", "learning_rate", "args"
        ],
        "rollout": ["name", "temperature", "top_p", "top_k", "sharing"],
        "deepspeed": ["config"],
        "memory": [
            "num_generations", "max_pixels", "min_pixels", "gradient_checkpointing", "completions_per_device",
            "max_completion_length", "max_prompt_length", "evaluation_batch_size",
        ],
        "launch": ["name", "nproc_per_node", "threads", "watchdog_s", "device"],
        "logging": ["report_to", "project", "mode"],
        "alarms": ["name", "window", "non_finite", "rules"],
        "protocol": ["name", "version", "scorer", "n_resamples"],
        "derived": ["device", "per_device_train_batch_size", "gradient_accumulation_steps"],
    }  # fmt: skip
    assert list(yaml.safe_load(written))[:5] == ["trust_code", "run", "evaluate", "question", "model"]


def test_rules_of_ones_own_stand_beside_the_usual_and_one_that_is_off_needs_no_limit():
    mine = "+alarms.rules.mine={metric: grad_norm, of: first, above: 9, action: stop, hint: look}"
    rules = frozen(HUB_MODEL, mine, "alarms.rules.kl={action: off, above: null}").alarms.rules
    assert rules["mine"].metric == "grad_norm"
    assert (rules["kl"].metric, rules["kl"].action, rules["kl"].above) == ("kl", "off", None)
    assert len(rules) >= 12


def test_the_usual_options_are_those_of_the_code():
    usual = yaml.safe_load((config_folder() / "reward" / "options" / "usual.yaml").read_text(encoding="utf-8"))
    assert usual == dataclasses.asdict(RewardOptions())


@pytest.mark.parametrize("name", GROUPS["reward"])
def test_every_preset_serves_every_task_that_it_pays(name):
    preset = yaml.safe_load((config_folder() / "reward" / f"{name}.yaml").read_text(encoding="utf-8"))
    paid = [
        task for task in task_names() if set(weights_for(load_task(task), preset)) & set(load_task(task).term_names)
    ]
    assert len(paid) >= 4
    for task in paid:
        RewardFunction(load_task(task), preset)


@pytest.mark.parametrize(("verb", "overrides"), [("reward", ["cases=a.jsonl", "out=b.jsonl"]), ("audit", [])])
def test_verbs_without_a_model_check_task_and_reward(verb, overrides):
    schema = {"reward": RewardCasesConfig, "audit": AuditConfig}[verb]
    for task in set(GROUPS["task"]) - {"own"}:
        assert freeze_plain(compose(verb, [*overrides, f"task={task}"]), schema).reward.name == "strict"
    for wrong, words in (
        ("reward=iou_only task=counting", "pays nothing for the answers of task=counting"),
        ("frame=norm100", "frame is 'norm100'"),
        ("+reward.weights.my_pkg.term=1", "trust_code=[my_pkg]"),
        ("reward.options.iou_threshold=2", "must lie in [0, 1)"),
        ("+reward.weights_for.counting.cuont=1", "did you mean count?"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            freeze_plain(compose(verb, [*overrides, *wrong.split()]), schema)


@pytest.mark.parametrize("name", GROUPS["protocol"])
def test_every_protocol_is_known_to_score(name):
    config = plain(compose("score", [f"protocol={name}", "out=scores.json"]))
    assert config["protocol"]["name"] == name
    assert list(shape_faults(config, ScoreConfig)) == []
    assert len(config_faults(config)) >= 1  # what it reads is not given
    assert all("must be given" in fault for fault in config_faults(config))


def test_yaml_files_open_with_their_purpose():
    files = sorted(config_folder().rglob("*.yaml")) + sorted(config_folder("sweeps").rglob("*.yaml"))
    assert len(files) >= 75
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        purpose = lines[1] if lines[0].startswith("# @package") else lines[0]
        assert re.match(r"# \S.*[.?]( .*)?$", purpose), file
        assert yaml.safe_load("\n".join(lines)), file


def test_every_verb_has_help_with_examples_that_are_its_own():
    for verb in VERBS:
        assert f"vrft {verb} " in verb_help(verb)


def test_the_examples_of_plan_are_of_trainings_that_can_run(monkeypatch):
    monkeypatch.setattr("vrft.config.model_checks.has_four_bits", lambda: False)
    text = (config_folder() / "plan.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip().startswith("vrft plan ") and "=" in line]
    examples = [VERBS["plan"].example, *lines]
    assert len(examples) == 4
    for example in examples:
        assert freeze(compose("plan", example.split()[2:]), is_remote=True).evaluate.train


def test_a_plan_refuses_what_a_training_refuses_but_for_what_another_machine_has(monkeypatch):
    monkeypatch.setattr("vrft.config.model_checks.has_four_bits", lambda: False)
    monkeypatch.setattr(vllm_checks.importlib.util, "find_spec", lambda package: None)
    plan = {"device": "cpu", "is_remote": True}
    large = ["model=qwen2_vl_7b", "trainer.max_steps=1"]
    for elsewhere in (["model/peft=qlora"], ["deepspeed=zero2", "rollout=vllm_colocate"]):
        config = compose("train", [*large, *elsewhere])
        assert freeze(config, **plan).model.dtype == "bfloat16"
        with pytest.raises(UserError, match=r"needs bitsandbytes|needs the package vllm"):
            freeze(config)
    for refused, word in (([], "bfloat16"), (["model/peft=qlora", "deepspeed=zero3"], "does not go with ZeRO-3")):
        with pytest.raises(UserError, match=word):
            freeze(compose("train", [*large, *refused]), **plan)

"""What a setting of TRL's GRPO trainer does in stock TRL, it does in vrft's too: completions, weights, logged figures.

Each row is a setting, run twice on each family from the same weights and seed. Rows with a `why` differ on purpose, and
must differ; on rows with `fails` stock TRL itself fails, and vrft must fail in the same way.
The settings are those that TRL's own tests of its trainer go through, and those that sharing could get wrong.
`make trl-suite` runs all of them; `make test` those of `SAMPLE`, each on one family.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from peft import LoraConfig, PromptTuningConfig
from small_models import FAMILIES, make_trainer, prompt_rows, reward_by_ids, save_model, small_model, small_processor
from trl import GRPOTrainer

from vrft.train.trl_overrides import SharedPrefixTrainer

ROUNDING = 1e-5
TIMES = ("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime",
         "eval_samples_per_second", "eval_steps_per_second")  # fmt: skip
SEVERAL = "a group stays in one micro-batch, so a step sees other rows"


def length(completion_ids: list, **_) -> list[float]:
    return [len(ids) / 10 for ids in completion_ids]


def first_token(completion_ids: list, **_) -> list[float]:
    """Equal in most groups."""
    return [float(ids[0] % 16 == 0) for ids in completion_ids]


def sometimes_none(completion_ids: list, **_) -> list[float | None]:
    return [None if ids[0] % 3 == 0 else sum(ids) % 7 / 7 for ids in completion_ids]


def constant(completion_ids: list, **_) -> list[float]:
    return [1.0] * len(completion_ids)


def lora(**options) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options)


def attention_dropout(model) -> None:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2


def of_the_checkpoint(**options) -> Callable:
    return lambda model: model.generation_config.update(**options)


@dataclass(frozen=True)
class Setting:
    """arguments: of `trl.GRPOConfig`. edit: changes the model. shares: False if TRL's path is taken by `auto`.

    why: the reason of a documented difference. fails: True if stock TRL itself fails. ignored: logged figures that
    differ for a documented reason.
    """

    arguments: Mapping = field(default_factory=dict)
    adapter: Callable | None = None
    edit: Callable | None = None
    freeze: bool = False
    rewards: tuple[Callable, ...] = (reward_by_ids,)
    n_images: tuple[int, ...] = (1,)
    evaluates: bool = False
    shares: bool = True
    why: str | None = None
    fails: bool = False
    ignored: tuple[str, ...] = ()


def loss(name: str, **more) -> Setting:
    arguments = {"loss_type": name, "num_iterations": 2, **more}
    return Setting(arguments, rewards=(first_token,))


KL = {"beta": 0.04}
SETTINGS = {
    "defaults": Setting(),
    **{f"loss {name}": loss(name) for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")},
    "loss luspo": loss("luspo", importance_sampling_level="sequence"),
    "loss grpo, by sequence": loss("grpo", importance_sampling_level="sequence"),
    "KL": Setting(KL),
    "KL, corrected": Setting({**KL, "use_bias_correction_kl": True, "num_iterations": 2}),
    "KL, moving reference": Setting({**KL, "sync_ref_model": True, "ref_model_sync_steps": 1}),
    "delta and epsilons": Setting({"delta": 1.5, "epsilon": 0.01, "epsilon_high": 0.02, "num_iterations": 2}),
    "off-policy mask": Setting({"off_policy_mask_threshold": 0.001, "num_iterations": 2}),
    "advantages of the batch": Setting({"scale_rewards": "batch"}),
    "advantages unscaled": Setting({"scale_rewards": "none"}),
    "normalize, then sum": Setting(
        {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [1.0, 0.5]},
        rewards=(reward_by_ids, length),
    ),
    "two rewards, weighted": Setting({"reward_weights": [0.7, 0.3]}, rewards=(reward_by_ids, length)),
    "rewards of None": Setting(rewards=(sometimes_none,)),
    "equal rewards": Setting({"optim": "adamw_torch", "weight_decay": 0.1}, rewards=(constant,)),
    "text alone, equal rewards": Setting(
        {"optim": "adamw_torch", "weight_decay": 0.1}, rewards=(constant,), n_images=(0,)
    ),
    "text alone": Setting(KL, n_images=(0,)),
    "two images in some rows": Setting(KL, n_images=(1, 2)),
    "high-entropy tokens": Setting({"top_entropy_quantile": 0.5}),
    "entropy bonus": Setting({"entropy_coef": 0.01}),
    "adaptive entropy": Setting({"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 5.0}),
    "truncated masked": Setting({"mask_truncated_completions": True, "max_completion_length": 6}),
    "padded to eight": Setting({**KL, "pad_to_multiple_of": 8}),
    "checkpointing": Setting({**KL, "gradient_checkpointing": True}),
    "cool, top-p, top-k, min-p": Setting({"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.01}),
    "repetition penalty": Setting({"repetition_penalty": 1.1}, shares=False),
    "generation kwargs": Setting({"generation_kwargs": {"min_new_tokens": 4}}),
    "beams by generation kwargs": Setting({"generation_kwargs": {"num_beams": 2}}, shares=False),
    "beams of the checkpoint": Setting(edit=of_the_checkpoint(num_beams=2), shares=False),
    "no repeated n-gram of the checkpoint": Setting(edit=of_the_checkpoint(no_repeat_ngram_size=2), shares=False),
    "prompt lookup of the checkpoint": Setting(
        edit=of_the_checkpoint(prompt_lookup_num_tokens=3), shares=False, fails=True
    ),
    "guidance of the checkpoint": Setting(edit=of_the_checkpoint(guidance_scale=1.5), shares=False, fails=True),
    "sampling of the checkpoint": Setting(
        edit=of_the_checkpoint(repetition_penalty=1.05, temperature=1e-6, top_k=1, top_p=0.001, num_beams=1)
    ),
    "template switch": Setting({"chat_template_kwargs": {"enable_thinking": False}}),
    "LoRA": Setting(KL, adapter=lora),
    "LoRA, RS, a whole module": Setting(KL, adapter=lambda: lora(use_rslora=True, modules_to_save=["norm"])),
    "DoRA": Setting(KL, adapter=lambda: lora(use_dora=True)),
    "LoRA, dropout": Setting(KL, adapter=lambda: lora(lora_dropout=0.2), shares=False),
    "LoRA, dropout disabled": Setting({"disable_dropout": True}, adapter=lambda: lora(lora_dropout=0.2)),
    "aLoRA": Setting(
        KL, adapter=lambda: lora(task_type="CAUSAL_LM", alora_invocation_tokens=invocation()), shares=False
    ),
    "prompt tuning": Setting(
        adapter=lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        n_images=(0,),
        shares=False,
        fails=True,
    ),
    "attention dropout": Setting(KL, edit=attention_dropout, shares=False),
    "NEFTune": Setting({"neftune_noise_alpha": 5.0}, shares=False),
    "frozen tower": Setting(KL, freeze=True),
    "evaluations": Setting({"eval_strategy": "steps", "eval_steps": 1}, evaluates=True),
    "evaluations, frozen tower": Setting(
        {**KL, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}, freeze=True, evaluates=True
    ),
    "evaluations between two iterations, frozen tower": Setting(
        {"eval_strategy": "steps", "eval_steps": 1, "num_iterations": 2}, freeze=True, evaluates=True
    ),
    "evaluations, LoRA, groups of two": Setting(
        {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2}, adapter=lora, evaluates=True
    ),
    "unshuffled, completions logged": Setting({"shuffle_dataset": False, "log_completions": True}),
    "Adafactor": Setting({"optim": "adafactor", "learning_rate": 1e-3}),
    "two micro-batches of a group": Setting(
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, ignored=("entropy", "clip_ratio/")
    ),
    "two steps a generation": Setting({"steps_per_generation": 2, "gradient_accumulation_steps": 1}, why=SEVERAL),
    "two steps a generation, evaluations, frozen tower": Setting(
        {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
        freeze=True,
        evaluates=True,
        why=SEVERAL,
    ),
}
SAMPLE = {
    "loss vespo": "qwen2_vl",
    "rewards of None": "qwen2_5_vl",
    "text alone, equal rewards": "qwen3_vl",
    "beams of the checkpoint": "qwen2_vl",
    "DoRA": "qwen2_5_vl",
    "LoRA, dropout": "qwen3_vl",
    "aLoRA": "qwen2_vl",
    "attention dropout": "qwen2_5_vl",
    "NEFTune": "qwen2_vl",
    "template switch": "qwen3_vl",
    "evaluations between two iterations, frozen tower": "qwen2_5_vl",
}
CASES = [
    pytest.param(name, family, id=f"{name}, {family}", marks=[] if SAMPLE.get(name) == family else [pytest.mark.slow])
    for name in SETTINGS
    for family in FAMILIES
]
SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"


def invocation() -> list[int]:
    return small_processor("qwen2_vl").tokenizer("<|im_start|>assistant\n")["input_ids"]


def trained(trainer_class, setting: Setting, family: str, folder):
    """The completions that rewards saw, the weights after two steps, and the log; or the error."""
    model = small_model(family)
    model.config._name_or_path = str(folder / "model")  # from where TRL loads its reference
    model.generation_config.eos_token_id = list(range(0, 570, 24))  # completions end at many lengths
    model.base_model.visual.requires_grad_(not setting.freeze)
    if setting.edit:
        setting.edit(model)
    seen = []

    def watched(completion_ids, **rest):
        seen.append(copy.deepcopy(completion_ids))
        return setting.rewards[0](completion_ids, **rest)

    trainer = make_trainer(
        trainer_class,
        model,
        family,
        prompt_rows(8, n_images=setting.n_images),
        folder,
        reward=[watched, *setting.rewards[1:]],
        peft_config=setting.adapter() if setting.adapter else None,
        eval_dataset=prompt_rows(3, image_sizes=((56, 56), (112, 84))) if setting.evaluates else None,
        **{"max_steps": 2, "max_completion_length": 10, **setting.arguments},
    )
    if "chat_template_kwargs" in setting.arguments:
        trainer.processing_class.chat_template += SWITCH
    try:
        trainer.train()
    except (RuntimeError, ValueError, TypeError) as error:
        return error
    weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    return seen, weights, trainer.state.log_history


def unequal_figures(stock: list[dict], ours: list[dict], ignored: tuple[str, ...]) -> list[tuple]:
    """What is logged otherwise, of the figures that stock TRL logs."""
    assert [entry["step"] for entry in stock] == [entry["step"] for entry in ours]
    is_known = (*TIMES, "frac_reward_zero_std", "eval_frac_reward_zero_std", *ignored)
    return [
        (name, value, other.get(name))
        for entry, other in zip(stock, ours, strict=True)
        for name, value in entry.items()
        if not (name.endswith("entropy") and other.get("shared_prefix/skipped"))  # then that of the other rows
        if isinstance(value, float | int) and not math.isnan(value) and not name.startswith(is_known)
        if other.get(name) is None or not math.isclose(value, other[name], rel_tol=ROUNDING, abs_tol=1e-6)
    ]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_as_in_stock_trl(tmp_path, monkeypatch, capsys, name, family):
    setting = SETTINGS[name]
    if setting.arguments.get("beta"):
        save_model(tmp_path / "model", family)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    theirs = trained(GRPOTrainer, setting, family, tmp_path)
    capsys.readouterr()
    ours = trained(SharedPrefixTrainer, setting, family, tmp_path)
    assert ("prompts are not shared" not in capsys.readouterr().err) == setting.shares
    assert isinstance(theirs, Exception) == setting.fails, theirs
    if setting.fails:
        assert type(ours) is type(theirs)
        return
    assert not isinstance(ours, Exception), ours
    moved = max((weight - ours[1][key]).abs().max().item() for key, weight in theirs[1].items())
    if setting.why:
        assert moved > ROUNDING, "no difference is left to document"
        return
    assert theirs[0] == ours[0]
    assert moved <= ROUNDING
    assert unequal_figures(theirs[2], ours[2], setting.ignored) == []

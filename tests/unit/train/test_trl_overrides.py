"""The table of TRL's and transformers' methods that vrft overrides: complete, and true of the installed versions."""

from __future__ import annotations

import gc
import importlib.metadata
import inspect
import weakref

import pytest
from small_models import make_trainer, prompt_rows, small_model
from trl import GRPOTrainer, SFTTrainer

from vrft.train.callbacks import Validation
from vrft.train.grpo import ResumableGRPO, ResumableSharing, ResumableSharingVLLM, ResumableVLLM
from vrft.train.sft import ResumableSFT
from vrft.train.trl_overrides import OVERRIDES, VERSIONS, SharedPrefixTrainer

TRAINERS = {
    ResumableGRPO: GRPOTrainer,
    ResumableSharing: GRPOTrainer,
    ResumableVLLM: GRPOTrainer,
    ResumableSharingVLLM: GRPOTrainer,
    SharedPrefixTrainer: GRPOTrainer,
    ResumableSFT: SFTTrainer,
}
EPOCH = (
    "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, ignore_keys_for_eval, "
    "start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)"
)
SCORING = (
    "(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, "
    "compute_aux_loss=False, pixel_values=None, image_grid_thw=None, num_images=None, pixel_attention_mask=None, "
    "spatial_shapes=None, num_tiles=None, image_sizes=None, token_type_ids=None, mm_token_type_ids=None, "
    "image_position_ids=None)"
)
LOSS = "(self, model, inputs, return_outputs=False, num_items_in_batch=None)"
# method: (of GRPOTrainer, of SFTTrainer where it is overridden there), without annotations
SIGNATURES = {
    "_get_train_sampler": ("(self, dataset=None)", "(self, train_dataset=None)"),
    "_run_epoch": (EPOCH, EPOCH),
    "training_step": ("(self, model, inputs, num_items_in_batch)", "(self, *args, **kwargs)"),
    "compute_loss": (LOSS, LOSS),
    "_get_grad_norm": ("(self, model, grad_norm=None)",) * 2,
    "evaluate": ("(self, eval_dataset=None, ignore_keys=None, metric_key_prefix='eval')",) * 2,
    "create_model_card": ("(self, model_name=None, dataset_name=None, tags=None)",) * 2,
    "_get_output_dir": ("(self, trial)",) * 2,
    "_save": ("(self, output_dir=None, state_dict=None)",) * 2,
    "_save_checkpoint": ("(self, model, trial)",) * 2,
    "_load_from_checkpoint": ("(self, resume_from_checkpoint, model=None)",) * 2,
    "_prepare_for_training": ("(self, max_steps, train_dataloader, resume_from_checkpoint)",) * 2,
    "_load_rng_state": ("(self, checkpoint)",) * 2,
    "_load_optimizer_and_scheduler": ("(self, checkpoint)",) * 2,
    "_calculate_rewards": ("(self, inputs, prompts, completions, completion_ids_list)",),
    "_generate_and_score_completions": ("(self, inputs)",),
    "_generate_single_turn": ("(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False)",),
    "_prepare_inputs": ("(self, generation_batch)",),
    "_compute_loss": ("(self, model, inputs)",),
    "_get_per_token_logps_and_entropies": (SCORING,),
}


def overridden(trainer: type, base: type) -> set[str]:
    """The methods of `base` that vrft's classes under `trainer` define, its constructor aside."""
    own = [one for one in trainer.__mro__ if one.__module__.startswith("vrft.")]
    return {name for one in own for name in vars(one) if hasattr(base, name) and not name.startswith("__")}


def signature(method) -> str:
    """Names, order and defaults; annotations are written differently by one release and the next."""
    found = inspect.signature(method)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=found.empty))


def test_the_table_names_every_override_and_no_other():
    found = set().union(*(overridden(*pair) for pair in TRAINERS.items()))
    assert found == OVERRIDES.keys() == SIGNATURES.keys()


def test_an_override_that_the_table_lacks_is_seen():
    class Careless(ResumableSFT):
        __module__ = "vrft.train.careless"

        def _get_eval_sampler(self, eval_dataset):
            return None

    assert overridden(Careless, SFTTrainer) - OVERRIDES.keys() == {"_get_eval_sampler"}


@pytest.mark.parametrize("package", VERSIONS)
def test_the_versions_are_those_whose_source_was_read(package):
    found = importlib.metadata.version(package)
    assert found == VERSIONS[package], f"read {package} {found} where vrft overrides it, then change VERSIONS"


@pytest.mark.parametrize("name", OVERRIDES)
def test_the_overridden_methods_are_as_the_table_has_them(name):
    by, why = OVERRIDES[name]
    assert inspect.unwrap(getattr(GRPOTrainer, name)).__module__.split(".")[0] == by
    assert why
    bases = [GRPOTrainer, *([SFTTrainer] if name in overridden(ResumableSFT, SFTTrainer) else [])]
    assert tuple(signature(getattr(base, name)) for base in bases) == SIGNATURES[name]


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides_take_all_that_they_stand_for_takes(name):
    """Each argument of TRL's GRPO trainer, by its name."""
    named = dict.fromkeys(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    owners = {owner for trainer in TRAINERS for owner in trainer.__mro__ if owner.__module__.startswith("vrft.")}
    own = [vars(owner)[name] for owner in owners if name in vars(owner)]
    assert own
    for method in own:
        inspect.signature(method).bind(**named)


def test_a_trainer_is_released_with_its_model_once_it_is_dropped(tmp_path):
    """The callbacks and counters that a run keeps hold no reference to it."""
    history = []
    validation = Validation(
        lambda policy, synced_gpus: {"accuracy": {"value": 0.5, "n": 1}}, metric="accuracy", eval_steps=2,
        processor=None, folder=tmp_path / "best", card={}, history=history, best=1.0,
    )  # fmt: skip
    trainer = make_trainer(
        ResumableSharing, small_model("qwen2_vl"), "qwen2_vl", prompt_rows(2), tmp_path, validation=validation
    )
    trainer.train()
    assert [entry["step"] for entry in history] == [0, 2, 3], "at both ends and every second step"
    logged = [entry["step"] for entry in trainer.state.log_history if "validation/accuracy" in entry]
    assert logged == [0, 2, 3]
    model = weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert model() is None
    assert validation.history == history

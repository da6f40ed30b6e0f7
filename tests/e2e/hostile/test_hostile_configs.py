"""Hostile configs, through the command line: what they carry never runs, and they are refused by name."""

from __future__ import annotations

import logging.config
import pickle
from contextlib import suppress

import pytest
import yaml
from hydra.core.plugins import Plugins
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from payloads import SMOKE, ran, written


def test_a_config_cannot_have_hydra_call_code(tmp_path, mark, refused, pickles):
    by_torch = {"_target_": "torch.load", "f": str(pickles["pt"]), "weights_only": False}
    by_numpy = {"_target_": "numpy.load", "file": str(pickles["npy"]), "allow_pickle": True}
    handler = {"()": "torch.load", "f": str(pickles["pt"]), "weights_only": False}
    for call in (by_torch, by_numpy):
        instantiate(call)
        assert ran(mark), "Hydra's own list of forbidden targets lets it through"
    with pytest.raises(ValueError, match="handler"):
        logging.config.dictConfig({"version": 1, "handlers": {"x": handler}, "root": {"handlers": ["x"]}})
    assert ran(mark)
    cases = [
        ({"hydra": {"callbacks": {"theirs": by_torch}}}, "hydra.callbacks"),
        ({"hydra": {"callbacks": {"theirs": by_numpy}}}, "hydra.callbacks"),
        ({"hydra": {"job_logging": {"handlers": {"x": handler}}}}, "hydra.job_logging.handlers.x.()"),
        ({"hydra": {"hydra_logging": {"handlers": {"x": handler}}}}, "hydra.hydra_logging.handlers.x.()"),
        ({"hydra": {"job": {"env_set": {"LD_PRELOAD": "theirs.so"}}}}, "hydra.job.env_set"),
        ({"model": {"peft": by_torch}}, "model.peft._target_"),
        ({"trainer": {"args": by_numpy}}, "trainer.args._target_"),
        ({"evaluate": {"titles": {"test": by_torch}}}, "evaluate.titles.test._target_"),
    ]
    for number, (config, words) in enumerate(cases):
        said = refused("train", "debug=smoke", f"run.dir={tmp_path / 'run'}", *written(tmp_path / str(number), config))
        assert words in said
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("plugin", ["launcher", "sweeper"])
@pytest.mark.parametrize("is_in_a_list", [False, True])
def test_a_launcher_or_sweeper_cannot_bring_code(tmp_path, mark, refused, pickles, plugin, is_in_a_list):
    """Hydra instantiates these with all that is in them, once there are several runs."""
    call = {"_target_": "numpy.load", "file": str(pickles["npy"]), "allow_pickle": True}
    own = {
        "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "max_batch_size": None},
    }[plugin]
    chosen = written(tmp_path, {"defaults": [{f"override /hydra/{plugin}": "theirs"}]})
    file = tmp_path / "configs" / "hydra" / plugin / "theirs.yaml"
    file.parent.mkdir(parents=True)
    theirs = {**own, "params": {"evil": [call] if is_in_a_list else call}}
    file.write_text(yaml.safe_dump(theirs))
    with suppress(InstantiationException):  # a launcher takes no `params`, but their values are made first
        Plugins.instance()._instantiate(OmegaConf.create(theirs))
    assert ran(mark)
    said = refused("train", "-m", *SMOKE, f"run.dir={tmp_path / 'run'}", *chosen)
    assert f"hydra.{plugin}.params.evil{'.0' * is_in_a_list}._target_" in said


def test_a_file_cannot_have_slurm_run_a_line(tmp_path, refused):
    """That of a file which also asks for several runs."""
    chosen = written(tmp_path, {"defaults": [{"override /hydra/launcher": "theirs"}], "hydra": {"mode": "MULTIRUN"}})
    file = tmp_path / "configs" / "hydra" / "launcher" / "theirs.yaml"
    file.parent.mkdir(parents=True)
    slurm = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    file.write_text(yaml.safe_dump({"_target_": slurm, "setup": [f"touch {tmp_path / 'mark'}"]}))
    assert "hydra.launcher.setup is set in a file" in refused("train", *SMOKE, f"run.dir={tmp_path / 'run'}", *chosen)


def test_a_config_with_python_tags_is_refused(tmp_path, mark, refused):
    config = f"a: !!python/object/apply:os.system ['touch {mark}']\n"
    yaml.unsafe_load(config)
    assert ran(mark)
    chosen = written(tmp_path, {})
    (tmp_path / "configs" / "experiment" / "theirs.yaml").write_text(config)
    assert "theirs.yaml" in refused("check", *chosen)


def test_a_pickled_job_is_not_run_again(mark, refused, pickles):
    pickle.loads(pickles["pickle"].read_bytes())
    assert ran(mark)
    assert str(pickles["pickle"]) in refused("train", f"--experimental-rerun={pickles['pickle']}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward.weights={os.system: 1.0}"], "os.system"),
        (["reward.weights={theirs.term: 1.0}"], "theirs.term"),
        (["reward.weights={theirs.term: 1.0}", "trust_code=[their, theirs.term]"], "theirs.term"),  # not its module
        (["task=own", "task.name=theirs.Task"], "theirs.Task"),
        (["+deepspeed.config={torch_autocast: {lower_precision_safe_modules: [theirs.Task]}}"], "lower_precision"),
    ],
)
def test_code_that_is_not_trusted_is_not_imported(tmp_path, refused, their_module, overrides, words):
    assert words in refused("train", *SMOKE, *overrides, f"run.dir={tmp_path / 'run'}")

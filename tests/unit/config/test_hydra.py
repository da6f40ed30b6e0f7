"""What Hydra would call, or a cluster's launcher would put into a script."""

from __future__ import annotations

import os

import pytest
from omegaconf import OmegaConf

from vrft.cli.main import main
from vrft.config.hydra import _hydra_faults, _script_faults, careful_environment

SLURM = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "partition": "gpu"}
LOGS = {"hydra_logging": None, "job_logging": None}


@pytest.mark.parametrize(
    ("target", "is_refused"),
    [
        ("optuna.samplers.TPESampler", False),
        ("optuna.samplers._base.np.load", True),  # a module that the package happens to import
        ("optuna.samplers.TPESampler.__init__", True),
        ("numpy.load", True),
    ],
)
def test_of_optuna_only_samplers_are_made(target, is_refused):
    sweeper = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"}
    settings = OmegaConf.create({"sweeper": sweeper | {"sampler": {"_target_": target}}, **LOGS})
    found = list(_hydra_faults(settings))
    assert bool(found) == is_refused
    assert all("hydra.sweeper.sampler._target_" in fault for fault in found)


@pytest.mark.parametrize("target", ["hydra_plugins.theirs.Launcher", "hydra_plugins.hydra_ray_launcher.RayLauncher"])
def test_a_launcher_that_nobody_has_looked_at_is_refused(target):
    settings = OmegaConf.create({"launcher": {"_target_": target}, **LOGS})
    assert "hydra.launcher._target_" in " ".join(_hydra_faults(settings))


@pytest.mark.parametrize(
    ("launcher", "overrides", "named"),
    [
        ({}, [], None),
        ({"setup": ["touch mark"]}, [], "hydra.launcher.setup"),
        ({"setup": ["touch mark"]}, ["hydra.launcher.setup=[touch mark]"], None),  # the user's own words
        ({"setup": ["touch mark"]}, ["hydra.launcher.partition=gpu"], "hydra.launcher.setup"),
        ({"additional_parameters": {"wrap": "touch mark"}}, [], "hydra.launcher.additional_parameters"),
        ({"additional_parameters": {"nice": 1}}, ["+hydra.launcher.additional_parameters.nice=1"], None),
        ({"srun_args": ["--prolog=mark"]}, [], "hydra.launcher.srun_args"),
        ({"partition": "gpu\ntouch mark"}, [], "hydra.launcher.partition"),
        ({"name": "${name}"}, [], "hydra.launcher.name"),
        ({"name": "${nothing}"}, [], "hydra.launcher cannot be resolved"),
    ],
)
def test_files_put_no_line_into_a_script(launcher, overrides, named):
    settings = OmegaConf.create({"launcher": SLURM | launcher, "name": "a\ntouch mark"})
    found = list(_script_faults(settings, overrides))
    assert len(found) == (named is not None)
    assert all(fault.startswith(named) for fault in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hydra: {output_subdir: ELSEWHERE}", "hydra.output_subdir is "),
        ("hydra: {run: {dir: ELSEWHERE}}", "hydra.run.dir is "),
        ("hydra: {sweep: {dir: ELSEWHERE}}", "hydra.sweep.dir is "),
        ("hydra: {sweep: {subdir: ELSEWHERE}}", "hydra.sweep.subdir is "),
        ("hydra: {job: {env_copy: [NOT_THERE]}}", "hydra.job.env_copy names 'NOT_THERE'"),
        ("hydra: {job: {env_copy: [HOME]}}", "hydra.job.env_set is set"),
        ("a: &a [*a]", "theirs.yaml is not plain YAML: its aliases (*name) add"),
        (
            "\n".join(["a0: &a0 [x, x, x]", *(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 9))]),
            "theirs.yaml is not plain YAML: its aliases (*name) add more than 20,000 values",
        ),
        ("a: " + "[" * 3000, "theirs.yaml is nested too deeply"),
        ("a: {b", "theirs.yaml is not plain YAML"),
    ],
)
def test_a_file_of_others_writes_nowhere_and_ends(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    file = tmp_path / "configs" / "experiment" / "theirs.yaml"
    file.write_text("# @package _global_\n" + text.replace("ELSEWHERE", str(tmp_path / "elsewhere")) + "\n")
    assert main(["check", f"--config-dir={tmp_path / 'configs'}", "experiment=theirs"]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


OUTER = {
    "torchrun": {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "a",
                 "MASTER_PORT": "1", "GROUP_RANK": "0", "ROLE_RANK": "3", "ROLE_WORLD_SIZE": "8",
                 "TORCHELASTIC_USE_AGENT_STORE": "True", "PET_NNODES": "2"},
    "mpirun": {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "3",
               "OMPI_COMM_WORLD_LOCAL_SIZE": "8", "MPI_LOCALRANKID": "3", "MPI_LOCALNRANKS": "8"},
    "srun": {"PMI_RANK": "3", "PMI_SIZE": "8", "PMIX_RANK": "3"},
    "accelerate": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "true", "MV2_COMM_WORLD_SIZE": "8"},
}  # fmt: skip


@pytest.mark.parametrize("launcher", OUTER)
def test_the_ranks_of_an_outer_job_reach_neither_this_process_nor_its_children(monkeypatch, capsys, launcher):
    for name, value in OUTER[launcher].items():
        monkeypatch.setenv(name, value)
    with careful_environment():
        assert not OUTER[launcher].keys() & os.environ.keys()
    assert OUTER[launcher].items() <= os.environ.items()
    told = capsys.readouterr().err
    assert [line for line in told.splitlines() if "SIZE=8" in line and "launch=torchrun" in line] == [told.strip()]


def test_one_process_of_an_outer_job_is_nothing_to_speak_of(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("WORLD_SIZES", "mine")
    with careful_environment():
        assert "RANK" not in os.environ
        assert os.environ["WORLD_SIZES"] == "mine"
    assert capsys.readouterr().err == ""

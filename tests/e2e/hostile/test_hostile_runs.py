"""Run directories: what somebody put into one never runs, and no secret of the environment gets into one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from payloads import SMOKE, ran, written
from safetensors.torch import load_file
from wandb.sdk.lib.gitlib import remote_url_without_password
from wandb_file import read_history, read_run
from written_run import write_result

from vrft.cli.main import main
from vrft.config.freeze import freeze
from vrft.config.package_files import config_folder
from vrft.files import publish
from vrft.models.prompt_settings import read_prompt_settings
from vrft.run.health import Status
from vrft.run.worker import _outcome
from vrft.train.checkpoints import newest_checkpoint

ROOT = Path(__file__).parents[3]
SECRETS = {
    "WANDB_API_KEY": "c0ffee" + "4" * 34,
    "HF_TOKEN": "hf_canary01",
    "HUGGING_FACE_HUB_TOKEN": "hf_canary02",
    "AWS_ACCESS_KEY_ID": "AKIAcanary03",
    "AWS_SECRET_ACCESS_KEY": "canary04",
    "GOOGLE_API_KEY": "canary05",
    "AZURE_STORAGE_KEY": "canary06",
    "OPENAI_API_KEY": "sk-canary07",
    "GITHUB_TOKEN": "ghp_canary08",
    "DATABASE_URL": "postgres://me:canary09@127.0.0.1/db",
    "https_proxy": "http://me:canary10@127.0.0.1:9",
    "MY_PASSWORD": "canary11",
    "SLURM_JWT": "canary13",  # W&B notes what SLURM sets
}
REMOTE = "https://ghp_canary12:x-oauth-basic@github.com/me/mine.git"
CANARIES = [b"c0ffee444", b"canary"]
SHADOWED = ("json", "yaml", "random", "wandb", "torch", "theirs")


def leaks(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and any(canary in path.read_bytes() for canary in CANARIES)
    ]


@pytest.fixture(scope="module")
def careful_run(tmp_path_factory):
    """A smoke run with secrets in its environment, in a checkout with a token in its remote's address and with modules
    of the names of others. The run directory lies in it; `mark` says that one of the modules was imported."""
    here = tmp_path_factory.mktemp("here")
    for name in SHADOWED:
        (here / f"{name}.py").write_text(f"open({str(here / 'mark')!r}, 'a').write({name!r})\n")
    subprocess.run(["git", "init", "-q", str(here)], check=True)
    subprocess.run(["git", "-C", str(here), "remote", "add", "origin", REMOTE], check=True)
    environment = os.environ | SECRETS | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    quick = ("evaluate.before=false", "evaluate.after=false", "trainer.eval_steps=null", "evaluate.checkpoint=last")
    # -P: as the command `vrft` begins, without the current folder on its path
    command = [sys.executable, "-P", "-m", "vrft", "train", *SMOKE, *quick, "run.dir=run", "logging=wandb_offline"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return here / "run"


def test_a_module_in_the_current_folder_stands_in_for_no_other(careful_run):
    here = careful_run.parent
    assert not (here / "mark").exists(), (here / "mark").read_text()
    subprocess.run([sys.executable, "-m", "theirs"], cwd=here, check=True)
    assert (here / "mark").read_text() == "theirs", "as python -m vrft.run.worker would find them"
    (here / "mark").unlink()


def test_no_secret_of_the_environment_is_written(careful_run, tmp_path):
    (run_file,) = careful_run.glob("wandb/offline-run-*/run-*.wandb")
    assert read_history(run_file)
    assert read_run(run_file)["config"]["vrft"]["run"]["dir"] == "run"
    assert leaks(careful_run) == []
    assert "canary12" in remote_url_without_password(REMOTE), "W&B's own care would not do"
    (tmp_path / "file").write_text(f"a{SECRETS['WANDB_API_KEY']}b")
    assert leaks(tmp_path) == [tmp_path / "file"]


def test_a_config_cannot_copy_a_secret(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    titles = {"evaluate": {"titles": {"test": "${oc.env:HF_TOKEN}"}}}
    said = refused("train", "debug=smoke", f"run.dir={tmp_path / 'run'}", *written(tmp_path, titles))
    assert "oc.env:HF_TOKEN" in said
    assert "canary" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "planted",
    [
        ["+deepspeed.config.comet.api_key=canary14"],
        ["run.name=canary03"],  # the value of a variable that holds a secret
        ["+evaluate.titles.test='https://me:canary15@127.0.0.1'"],
        ["-m", "+deepspeed.config.comet.api_key=canary14,canary16"],
        ["--cfg", "job", "+trainer.args.hub_token=canary17"],
    ],
)
def test_a_secret_in_a_config_is_written_nowhere(tmp_path, refused, monkeypatch, planted):
    monkeypatch.setenv("THEIR_TOKEN", "canary03")
    said = refused("train", *planted, "deepspeed=zero2", "debug=smoke", f"run.dir={tmp_path / 'run'}")
    assert "what looks like a secret" in said
    assert "canary" not in said
    assert not (tmp_path / "run").exists()
    assert leaks(tmp_path) == []


def test_a_run_directorys_config_with_python_tags_is_refused(tmp_path, mark, refused):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = f"model: !!python/object/apply:os.system ['touch {mark}']\n"
    yaml.unsafe_load(config)
    assert ran(mark)
    (run_dir / "config.yaml").write_text(config)
    write_result(run_dir)
    assert str(run_dir / "config.yaml") in refused("train", *SMOKE, f"run.dir={run_dir}", "run.resume=true")
    assert str(run_dir / "config.yaml") in refused("report", f"runs={run_dir}")


def test_a_run_directory_cannot_say_that_it_is_trusted(careful_run, tmp_path, mark, their_module, capfd):
    """A report of somebody's run takes no trust from its files, nor does an evaluation of its checkpoint."""
    run_dir = tmp_path / "run"
    shutil.copytree(careful_run, run_dir, ignore=shutil.ignore_patterns("wandb"))
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config |= {"trust_code": ["theirs"], "task": {"name": "theirs.Task"}}
    config["model"]["trust_remote_code"], config["reward"]["weights"] = True, {"theirs.term": 1.0}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    for folder in (run_dir, run_dir / "checkpoints" / "last"):
        (folder / "theirs.py").write_text(their_module.read_text())
    main(["report", f"runs={run_dir}"])
    assert not mark.exists(), "".join(capfd.readouterr())
    path = f"model.path={run_dir / 'checkpoints' / 'last'}"
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        judged = freeze(compose("evaluate", overrides=[*SMOKE, path]), overrides=[*SMOKE, path])
    assert (judged.trust_code, judged.model.trust_remote_code) == ([], False)
    assert judged.memory.max_completion_length == read_prompt_settings(judged.model.path)["max_completion_length"]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_poisoned_checkpoint_is_passed_over_or_refused(careful_run, tmp_path, mark, pickles, capsys, name):
    torch.load(pickles["pt"], weights_only=False)
    assert ran(mark)
    run_dir = tmp_path / "run"
    shutil.copytree(careful_run, run_dir, ignore=shutil.ignore_patterns("wandb"))
    checkpoint = run_dir / "checkpoints" / "checkpoint-2"
    shutil.copy(pickles["pt"], checkpoint / name)
    assert newest_checkpoint(checkpoint.parent) is None
    assert name in capsys.readouterr().err
    # with a manifest to match, and steps to go
    (checkpoint / "manifest.json").unlink()
    publish(checkpoint.rename(run_dir / "staging"), checkpoint)
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["run"]["resume"], config["trainer"]["max_steps"], config["logging"]["report_to"] = True, 3, []
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    assert _outcome(run_dir, Status(), is_main=True) == 2
    assert not mark.exists()
    assert f"{checkpoint} holds more than tensors" in capsys.readouterr().err
    assert load_file(checkpoint / "model.safetensors")

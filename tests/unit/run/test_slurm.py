"""Jobs without a cluster: what sbatch is given, what is refused before, and what a job's end means."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from submitit.slurm.slurm import _make_sbatch_string

from vrft.config.freeze import freeze
from vrft.config.hydra import careful_hydra
from vrft.config.package_files import config_folder
from vrft.config.schema import Config
from vrft.errors import UserError
from vrft.run import slurm, slurm_job
from vrft.run.directory import OccupiedError, alone_in


def composed(*overrides: str):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"), careful_hydra():
        return compose("train", ["experiment=digits_riddles", "run.dir=runs/a", *overrides])


def frozen(*overrides: str) -> Config:
    return freeze(composed(*overrides))


def script(*overrides: str) -> str:
    """The lines that sbatch would be given."""
    config = frozen("launch=slurm", *overrides)
    parameters = slurm.job_parameters(config.launch, config.run.name)
    return _make_sbatch_string(command="COMMAND", folder="runs/a/slurm", **parameters)


def test_what_sbatch_is_given():
    text = script(
        "launch.partition=gpu", "launch.account=lab", "launch.time='1-00:00:00'", "launch.nproc_per_node=4",
        "launch.nnodes=2", "launch.cpus_per_task=16", "launch.mem=64G", "launch.signal_delay_s=300",
        "+launch.extra.qos=high", "+launch.extra.exclusive=true", "launch.setup=[module load cuda]", "run.name=a b",
    )  # fmt: skip
    lines = text.splitlines()
    for option in (
        "partition=gpu", "account=lab", "time=1-00:00:00", "nodes=2", "ntasks-per-node=1", "gpus-per-node=4",
        "cpus-per-task=16", "mem=64G", "signal=USR2@300", "qos=high", "exclusive", "requeue", "export=ALL",
        "open-mode=append", "job-name=vrft-a_b",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    assert lines.index("module load cuda") > max(n for n, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert "--kill-on-bad-exit=1 --wait=0 --cpus-per-task=16 COMMAND" in text


def test_two_submissions_of_one_run_are_not_made_at_once(tmp_path):
    folder = tmp_path / slurm.FOLDER
    folder.mkdir()
    with alone_in(folder), pytest.raises(OccupiedError, match=r"another process works in run\.dir"):
        slurm.submit(tmp_path, frozen("launch=slurm"))


def test_what_is_left_to_the_cluster():
    text = script("launch.gpus_per_node=null")
    for option in ("partition", "account", "time", "gpus-per-node", "cpus-per-task", "mem", "wckey"):
        assert f"--{option}" not in text


def test_names_cannot_write_lines_of_the_script():
    text = script("run.name='x\n#SBATCH --wrap=evil'", "+launch.extra.comment='$(touch mark); `id`'")
    assert "#SBATCH --comment='$(touch mark); `id`'" in text
    assert "#SBATCH --wrap" not in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["launch.partition='gpu\ntouch mark'"], "launch.partition is 'gpu\\ntouch mark'; a name"),
        (["launch.account='a b'"], "launch.account is 'a b'"),
        (["launch.time=90"], "launch.time is 90; HH:MM:SS or D-HH:MM:SS"),
        (["launch.mem=lots"], "launch.mem is 'lots'; a number with K, M, G or T"),
        (["+launch.extra.wrap=id"], "launch.extra has 'wrap'; "),
        (["+launch.extra.output=/etc/passwd"], "launch.extra has 'output'; "),
        (["+launch.extra.qoss=high"], "did you mean qos?"),
        (["+launch.extra.qos='a\nb'"], "launch.extra.qos is 'a\\nb'"),
        (["launch.extra=high"], "launch.extra is 'high'; a mapping to values is needed"),
        (["launch.setup=['a\nb']"], "launch.setup has 'a\\nb'; one shell line"),
        (["launch.nnodes=0"], "launch.nnodes is 0; at least 1"),
        (["launch.max_requeues=-1"], "launch.max_requeues is -1; at least 0"),
        (["launch.gpus_per_node=eight"], "launch.gpus_per_node is 'eight'; an integer or null"),
        (["+launch.nodes=2"], "launch has no key 'nodes'; did you mean nnodes?"),
        (["run.dir=runs/50%"], "run.dir is 'runs/50%'"),
        (["launch.nnodes=3"], "launch.nproc_per_node=1 × launch.nnodes=3 processes cannot share evenly"),
    ],
)
def test_a_job_that_cannot_be_is_refused_with_its_key(overrides, words):
    with pytest.raises(UserError) as refused:
        frozen("launch=slurm", "trainer.prompts_per_step=2", "memory.num_generations=8", *overrides)
    assert words in str(refused.value)


def test_shell_lines_come_from_the_command_line_alone(tmp_path):
    lines = "[touch mark]"
    assert frozen("launch=slurm", f"launch.setup={lines}").launch.setup == ["touch mark"]
    (tmp_path / "launch").mkdir()
    text = (config_folder() / "launch" / "slurm.yaml").read_text()
    (tmp_path / "launch" / "mine.yaml").write_text(text.replace("setup: []", f"setup: {lines}"))
    (tmp_path / "sweep").mkdir()
    params = {"hydra": {"sweeper": {"params": {"launch.setup": lines}}}}
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\n{json.dumps(params)}")
    with pytest.raises(UserError, match=r"launch\.setup is set in a file"):
        composed(f"hydra.searchpath=[file://{tmp_path}]", "launch=mine")
    with pytest.raises(UserError, match=r"params has launch\.setup"):
        composed(f"hydra.searchpath=[file://{tmp_path}]", "launch=slurm", "sweep=mine")


def test_without_a_cluster_the_user_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"launch=slurm needs sbatch, srun, scontrol on PATH; .* login node"):
        slurm.check_cluster(tmp_path)


@pytest.fixture
def sbatch(monkeypatch, tmp_path):
    """A folder on PATH with a `sbatch` that does what its text says, a `srun` and a `scontrol`."""

    def does(text: str):
        for name, line in {"sbatch": text, "srun": "", "scontrol": ""}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return does


def test_a_job_is_submitted_and_no_pickle_but_its_own_is_left(sbatch, states, tmp_path):
    run_dir, config = tmp_path / "run", frozen("launch=slurm", f"run.dir={tmp_path / 'run'}")
    (run_dir / "slurm").mkdir(parents=True)
    planted = run_dir / "slurm" / "99_submitted.pkl"
    planted.write_bytes(b"hostile")
    sbatch("echo Submitted batch job 99")
    assert slurm.submit(run_dir, config) == "99"
    assert b"run_on_node" in planted.read_bytes()
    assert json.loads((run_dir / "slurm" / "job.json").read_text()) == {"job": "99"}
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["run"]["resume"] is True  # once it is requeued
    states(job("PENDING"))
    with pytest.raises(OccupiedError, match=r"job 99 already uses run\.dir=.* \(SLURM says PENDING\)"):
        slurm.submit(run_dir, config)
    states(job("COMPLETED"))
    sbatch("echo invalid partition >&2; exit 1")
    with pytest.raises(UserError, match=r"sbatch refused the job: .*invalid partition.*; look at launch\.partition"):
        slurm.submit(run_dir, config)


@pytest.mark.parametrize(
    ("launch", "device"),
    [
        ({"name": "local"}, None),
        ({"name": "slurm", "gpus_per_node": 1}, "cuda"),  # though the login node has none
        ({"name": "slurm", "gpus_per_node": None, "extra": {}}, "cpu"),
        ({"name": "slurm", "gpus_per_node": None, "extra": {"gres": "gpu:a100:2"}}, "cuda"),
        ({"name": "slurm", "gpus_per_node": None, "extra": {"gres": "shard:4,gpu:1"}}, "cuda"),
        ({"name": "slurm", "gpus_per_node": None, "extra": {"gres": "craynetwork:1"}}, "cpu"),
        ({"name": "slurm", "gpus_per_node": None, "extra": {"gpus_per_task": 1}}, "cuda"),
        ({"name": "slurm", "gpus_per_node": None, "extra": {"gpus-per-task": 0}}, "cpu"),
        ({"name": "slurm", "gpus_per_node": None, "extra": {"tres-per-task": "cpu=4,gres/gpu:a100=1"}}, "cuda"),
        ({"name": "slurm", "gpus_per_node": None, "extra": {"exclude": "gpu[01-04]"}}, "cpu"),
        ({"name": "slurm", "gpus_per_node": None, "extra": "high"}, "cpu"),  # not checked yet
        ({"name": "slurm", "gpus_per_node": None, "extra": {"comment": "no gpu", "gpu-bind": "none"}}, "cpu"),
    ],
)
def test_the_device_is_the_jobs(launch, device):
    assert slurm.device_of_job(launch) == device


@pytest.fixture
def states(monkeypatch, tmp_path):
    """Let SLURM answer with these states, one after the other; returns the run directory."""

    def are(*answers: dict | None):
        (tmp_path / "slurm").mkdir(exist_ok=True)
        left = list(answers)
        monkeypatch.setattr(slurm, "_query", lambda job_id: left.pop(0) if len(left) > 1 else left[0])
        monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
        return tmp_path

    return are


def job(state: str, **more: str) -> dict:
    return {"JobState": state, **more}


PENDING, RUNNING = job("PENDING", Reason="Priority"), job("RUNNING", NodeList="n[1-2]")


@pytest.mark.parametrize(
    ("answers", "said", "code", "words"),
    [
        ([PENDING, RUNNING, job("COMPLETED")], {"code": 0}, 0, ["PENDING (Priority)", "RUNNING on n[1-2]"]),
        ([None, job("CANCELLED")], None, 143, ["ended as CANCELLED, exit code 143"]),
        ([job("TIMEOUT")], None, 140, ["ended as TIMEOUT"]),
        ([job("NODE_FAIL")], None, 1, ["ended as NODE_FAIL"]),
        ([job("OUT_OF_MEMORY")], None, 137, []),
        ([job("FAILED", ExitCode="2:0")], None, 2, ["the end of", "  | what went wrong"]),
        ([job("FAILED", ExitCode="1:0")], {"code": 124}, 124, []),  # srun's code is that of whichever task
        ([job("FAILED", ExitCode="0:9")], None, 1, []),
        ([job("COMPLETED")], None, 1, []),  # but it has not said so itself: an earlier end's word is not this one's
        ([job("COMPLETED")], {"job": "6", "code": 0}, 1, []),
        ([job("CANCELLED", Restarts="1")], {"code": 140, "is_requeued": True}, 143, ["requeued once"]),
        ([job("PREEMPTED"), job("PENDING", Restarts="1"), job("COMPLETED", Restarts="1")],
         {"code": 0, "restarts": 1}, 0, ["PENDING, requeued once"]),  # on its way back into the queue
    ],
)  # fmt: skip
def test_what_a_jobs_end_means(states, capsys, answers, said, code, words):
    run_dir = states(*answers)
    (run_dir / "slurm" / "7_0_log.out").write_text("begin\nwhat went wrong\n")
    if said is not None:
        whole = {"job": "7", "restarts": 0, "is_requeued": False} | said
        slurm_job.note_end(run_dir, job_id=whole.pop("job"), **whole)
    assert slurm.follow(run_dir, "7") == code
    told = capsys.readouterr().err
    for one in words:
        assert one in told


def test_a_second_job_for_a_run_directory_is_refused(states, sbatch):
    sbatch("")
    run_dir = states(job("PENDING"))
    slurm.check_no_job(run_dir)
    (run_dir / "slurm" / "job.json").write_text(json.dumps({"job": "7"}))
    with pytest.raises(UserError, match=r"job 7 already uses run.dir=.*PENDING.*scancel 7"):
        slurm.check_no_job(run_dir)


@pytest.fixture
def node(monkeypatch, tmp_path):
    """Be a node of job 7, whose workers end with `code`; returns the run directory and what scontrol was asked."""

    def is_one(code: int, *, number: int = 0, restarts: int = 0, shows: str = "PreemptTime=None"):
        asked: list[list[str]] = []

        def scontrol(command, **kwargs):
            asked.append(command[1:])
            return subprocess.CompletedProcess(command, 0, stdout=shows, stderr="")

        config = frozen("launch=slurm", "launch.max_requeues=2", f"run.dir={tmp_path}")
        (tmp_path / "slurm").mkdir()
        (tmp_path / "config.yaml").write_text(json.dumps(config.plain()))
        monkeypatch.setattr(slurm_job, "start_worker", lambda run_dir, config, is_patient: code)
        monkeypatch.setattr(slurm_job.subprocess, "run", scontrol)
        monkeypatch.setattr(slurm_job.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(slurm_job.signal, "signal", lambda number, handler: None)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_NODEID", str(number))
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # so that it is taken back
        with pytest.raises(SystemExit) as end:
            slurm_job.run_on_node(str(tmp_path))
        return end.value.code, asked

    return is_one


@pytest.mark.parametrize(
    ("code", "settings", "ends_with", "is_requeued"),
    [
        (128 + signal.SIGUSR2, {}, 140, True),  # warned
        (143, {}, 143, False),  # cancelled
        (143, {"shows": "PreemptTime=2026-11-23T23:26:23"}, 140, True),  # preempted
        (140, {"restarts": 2}, 140, False),  # launch.max_requeues=2
        (124, {}, 124, False),
        (140, {"number": 1}, 0, False),  # the first node says what comes now
        (137, {"number": 1}, 137, False),  # killed: srun is to end the others
    ],
)
def test_which_ends_go_back_into_the_queue(node, tmp_path, code, settings, ends_with, is_requeued):
    ended, asked = node(code, **settings)
    assert ended == ends_with
    assert (["requeue", "7"] in asked) == is_requeued
    if not settings.get("number"):
        assert json.loads((tmp_path / "slurm" / "ended.json").read_text())["is_requeued"] == is_requeued


def test_nodes_meet_at_the_first_ones_address_at_a_port_of_their_own(monkeypatch):
    answers = {"show": "n3\nn4\n", "-o": "NodeName=n3 Arch=x NodeAddr=10.0.0.3 NodeHostName=n3"}
    monkeypatch.setattr(slurm_job, "_scontrol", lambda *arguments: answers[arguments[0]])
    places = []
    for job_id, restarts in (("7", "0"), ("7", "1"), ("8", "0")):
        monkeypatch.setenv("SLURM_JOB_ID", job_id)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        monkeypatch.setenv("SLURM_JOB_NODELIST", "n[3-4]")
        places.append(slurm_job._rendezvous(2)["rdzv_endpoint"])
    assert all(place.startswith("10.0.0.3:2") for place in places)
    assert len(set(places)) == 3
    assert slurm_job._rendezvous(1) == {"rdzv_endpoint": None, "rdzv_id": "vrft"}

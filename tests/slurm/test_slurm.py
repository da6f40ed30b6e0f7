"""Jobs on a real SLURM: a sweep, two nodes, one cancelled, one that fails, one warned and one preempted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torture.harness import BASE, differences

from vrft.run import health

pytestmark = pytest.mark.slurm
ON_CPUS = ("launch=slurm", "launch.gpus_per_node=null", "launch.partition=main")
TWO_NODES = (*ON_CPUS, "launch.nnodes=2", "launch.cpus_per_task=1")


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"


class Run:
    """`vrft train` with what it says in a file."""

    def __init__(self, cluster: dict, folder: Path, *arguments: str) -> None:
        self.cluster, self.run_dir, self.said = cluster, folder / "run", folder / "said.txt"
        folder.mkdir(exist_ok=True)
        environment = cluster | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [
            sys.executable,
            "-m",
            "vrft",
            "train",
            *arguments[:1],
            *BASE,
            f"run.dir={self.run_dir}",
            *arguments[1:],
        ]
        with self.said.open("w") as said:
            self.process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)

    def ends(self, code: int) -> str:
        """Wait for the end, and return all that was said."""
        assert self.process.wait(timeout=400) == code, self.told()
        return self.told()

    def told(self) -> str:
        logs = [path.read_text() for path in sorted(self.run_dir.glob("slurm/*_log.out"))]
        return "\n".join([self.said.read_text(), *logs])

    def job(self) -> str:
        """The job's number, once it is submitted."""
        until(lambda: (self.run_dir / "slurm" / "job.json").exists(), self)
        return json.loads((self.run_dir / "slurm" / "job.json").read_text())["job"]

    def slurm(self, *command: str) -> str:
        done = subprocess.run(command, env=self.cluster, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def is_in_step(self, step: int) -> bool:
        return any((word.get("step") or 0) >= step for word in health.read_statuses(self.run_dir))


def until(is_so, run: Run, timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, run.told()
        assert run.process.poll() is None or is_so(), run.told()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(cluster, tmp_path_factory):
    """The two-node run that nobody disturbs."""
    run = Run(cluster, tmp_path_factory.mktemp("alone"), *TWO_NODES)
    told = run.ends(0)
    assert re.search(r"job \d+ RUNNING on n\[1-2\]", told)
    assert "COMPLETED" in told
    return run.run_dir


def test_a_job_of_two_nodes(alone):
    assert (alone / "result.json").exists()
    assert (alone / "report.html").exists()
    words = health.read_statuses(alone)
    assert [(word["rank"], word["state"], word["code"]) for word in words] == [(0, "finished", 0), (1, "finished", 0)]
    assert {word["node"] for word in words} == {0, 1}


def test_a_job_that_is_preempted_goes_on_to_the_same_bits(cluster, alone, tmp_path):
    run = Run(cluster, tmp_path, *TWO_NODES)
    until(lambda: run.is_in_step(3), run)
    run.slurm(
        "sbatch", "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent", "--wrap=sleep 2"
    )
    told = run.ends(0)
    assert "saved; job" in told
    assert "requeued once" in told
    assert "resuming from" in told
    assert differences(alone, run.run_dir) == []


def test_a_warned_job_saves_and_is_requeued_as_often_as_it_may(cluster, tmp_path):
    """SIGUSR2, as before a time limit."""
    run = Run(cluster, tmp_path, *ON_CPUS, "launch.max_requeues=1", "trainer.max_steps=60")
    for step in (2, 8):
        until(lambda step=step: run.is_in_step(step), run)
        run.slurm("scancel", "--signal=USR2", run.job())
        until(lambda step=step: not run.is_in_step(step) or run.process.poll() is not None, run)
    told = run.ends(140)
    assert "requeued once" in told
    assert "requeued launch.max_requeues=1 times before" in told
    assert "run.resume=true" in told
    assert len(list((run.run_dir / "checkpoints").glob("checkpoint-*"))) >= 2


def test_a_job_that_is_cancelled_is_noticed(cluster, tmp_path):
    run = Run(cluster, tmp_path, *ON_CPUS, "trainer.max_steps=60")
    until(lambda: run.is_in_step(2), run)
    run.slurm("scancel", run.job())
    told = run.ends(143)
    assert "ended as CANCELLED" in told
    assert "run.resume=true" in told
    assert list((run.run_dir / "checkpoints").glob("checkpoint-*"))  # SLURM leaves it KillWait seconds


def test_a_job_that_is_cancelled_before_it_begins_is_noticed(cluster, tmp_path):
    run = Run(cluster, tmp_path, *ON_CPUS, "+launch.extra.begin=now+1hour")
    job = run.job()
    until(lambda: "PENDING (BeginTime)" in run.told(), run)
    again = Run(cluster, tmp_path / "again", *ON_CPUS, f"run.dir={run.run_dir}", "run.resume=true")
    assert f"job {job} already uses run.dir" in again.ends(2)
    run.slurm("scancel", job)
    assert "ended as CANCELLED" in run.ends(143)


def test_a_job_that_fails_is_reported(cluster, tmp_path):
    run = Run(cluster, tmp_path, *ON_CPUS, "trainer.max_steps=60")
    until(lambda: run.is_in_step(2), run)
    os.kill(health.read_statuses(run.run_dir)[0]["pid"], signal.SIGKILL)
    told = run.ends(1)
    assert "ended as FAILED, exit code 1" in told
    assert re.search(r"the end of .*_0_log.out:", told)
    assert re.search(r"rank 0 in train step \d+, at rows .*: ended without a word", run.said.read_text())


def test_what_the_worker_refuses_reaches_the_user(cluster, tmp_path):
    run = Run(cluster, tmp_path, *ON_CPUS, "memory.max_prompt_length=10")
    run.ends(2)
    assert "Questions longer than memory.max_prompt_length=10" in run.said.read_text()
    assert not run.run_dir.exists()


def test_what_sbatch_refuses_leaves_nothing(cluster, tmp_path):
    run = Run(cluster, tmp_path, *ON_CPUS, "launch.partition=nosuch")
    assert "sbatch refused the job" in run.ends(2)
    assert not run.run_dir.exists()


def test_a_sweep_of_two_jobs(cluster, tmp_path):
    """Submitted one after the other, they run side by side."""
    rates = "trainer.learning_rate=1e-4,2e-4"
    run = Run(cluster, tmp_path, "-m", *ON_CPUS, "trainer.max_steps=2", "launch.wait=false", rates)
    assert len(set(re.findall(r"job \d+ is submitted", run.ends(0)))) == 2
    end = time.monotonic() + 200
    while len(list(run.run_dir.glob("*/report.html"))) < 2:
        assert time.monotonic() < end, run.slurm("squeue")
        time.sleep(0.5)
    rates = [yaml.safe_load(path.read_text())["trainer"]["learning_rate"] for path in run.run_dir.glob("*/config.yaml")]
    assert sorted(rates) == [1e-4, 2e-4]
    records = [json.loads(path.read_text()) for path in (run.run_dir / "children").glob("*.json")]
    assert [record["state"] for record in records] == ["submitted"] * 2


def test_the_job_script_of_ones_own_requeues_itself(cluster, tmp_path):
    run_dir = tmp_path / "run"
    shown = Path(sys.executable).parent / "vrft"
    assert shown.exists()
    environment = cluster | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MEETING_HOST": "localhost"}
    environment["PATH"] = f"{shown.parent}:{environment['PATH']}"
    options = ["--nodes=2", "--gres=none", "--cpus-per-task=1", "--time=10", "--parsable", f"--output={tmp_path}/log"]
    command = ["sbatch", *options, str(SCRIPT), *BASE, f"run.dir={run_dir}"]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()

    def wait_for(is_so) -> None:
        end = time.monotonic() + 240
        while not is_so():
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)

    wait_for(lambda: any((word.get("step") or 0) >= 3 for word in health.read_statuses(run_dir)))
    subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True)
    wait_for((run_dir / "report.html").exists)
    assert "resuming from" in (tmp_path / "log").read_text()

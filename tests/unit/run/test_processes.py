"""Workers: their command, their exit codes, and the end that Ctrl-C brings to both sides."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise

import psutil
import pytest

from vrft.config.launch_schema import LocalLaunch, TorchrunLaunch
from vrft.config.schema import Config, DeepSpeed
from vrft.config.section import with_values
from vrft.errors import UserError
from vrft.run import health, processes
from vrft.run.processes import first_failure, start_worker, worker_command


def settings(*, name="local", processes=1, deepspeed=None, threads=None, watchdog_s=None) -> Config:
    values = {"name": name, "nproc_per_node": processes, "threads": threads, "watchdog_s": watchdog_s}
    if name == "torchrun":
        meeting = {"node_rank": 0, "rdzv_endpoint": None, "rdzv_id": "vrft", "rdzv_timeout_s": 60}
        launch = TorchrunLaunch.model_construct(nnodes=1, **meeting, **values)
    else:
        launch = LocalLaunch.model_construct(**values)
    return Config.model_construct(launch=launch, deepspeed=DeepSpeed.model_construct(config=deepspeed))


@pytest.mark.parametrize(
    ("config", "is_torchrun"),
    [
        (settings(), False),
        (settings(name="torchrun", processes=2), True),
        (settings(deepspeed={"zero_optimization": {"stage": 3}}), True),  # DeepSpeed reads torchrun's environment
    ],
)
def test_what_starts_the_worker(config, is_torchrun, tmp_path):
    command = worker_command(tmp_path, config)
    assert command[0] == sys.executable
    assert command[-3:] == ["-m", "vrft.run.worker", str(tmp_path)]
    assert ("torch.distributed.run" in command) == is_torchrun
    if is_torchrun:
        assert command[command.index("--nproc-per-node") + 1] == str(config.launch.nproc_per_node)


def test_what_starts_the_workers_of_one_of_several_machines(tmp_path):
    machines = {"launch.nnodes": 3, "launch.rdzv_endpoint": "node1:29500", "launch.rdzv_id": "a"}
    for node, hosts in ((0, "True"), (2, "False")):
        config = settings(name="torchrun", processes=8)
        command = worker_command(tmp_path, with_values(config, machines | {"launch.node_rank": node}))
        assert command[-3:] == ["vrft.run.worker", str(tmp_path), str(node)]
        given = dict(pairwise(command))
        assert (given["--nnodes"], given["--nproc-per-node"], given["--rdzv-backend"]) == ("3", "8", "c10d")
        assert (given["--rdzv-endpoint"], given["--rdzv-id"]) == ("node1:29500", "a")
        assert given["--rdzv-conf"] == f"is_host={hosts},read_timeout=60,join_timeout=60"
        assert "--standalone" not in command


@pytest.fixture
def worker(monkeypatch):
    """Make the worker run this source instead of `vrft.run.worker`."""

    def becomes(source: str) -> None:
        monkeypatch.setattr(
            processes, "worker_command", lambda run_dir, config: [sys.executable, "-c", source, str(run_dir)]
        )

    return becomes


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("", 0),
        ("raise SystemExit(2)", 2),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),  # as the out-of-memory killer does
        ("import os; raise SystemExit(int(os.environ['OMP_NUM_THREADS']) != 3)", 0),  # launch.threads reaches it
    ],
)
def test_the_workers_exit_code_is_passed_on(worker, tmp_path, source, code):
    worker(source)
    assert start_worker(tmp_path, settings(threads=3)) == code


WORKER = """
import os, signal, sys, time
from pathlib import Path
from vrft.run import health
run_dir = Path(sys.argv[1])
status = health.Status()
status.listen()
status.begin(run_dir, 0)
status.say(doing="train", step=3, rows=["a", "b"])
"""
PATIENT = """
with status.patience():
    os.kill(os.getppid(), signal.{name})  # whoever interrupts vrft
    while not status.received():
        time.sleep(0.01)
    {then}
    status.say(state="finished", code=128 + status.received())
    raise SystemExit(128 + status.received())
"""


@pytest.fixture
def heeded():
    """SIGHUP is not ignored, as it is where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR2", 140)])
def test_the_first_signal_reaches_the_worker_which_ends_in_its_own_time(worker, tmp_path, name, code, capfd, heeded):
    worker(WORKER + PATIENT.format(name=name, then='time.sleep(0.5); (run_dir / "saved").touch()'))
    assert start_worker(tmp_path, settings()) == code
    assert (tmp_path / "saved").exists()
    assert capfd.readouterr().err.count("interrupted; the step is finished and saved") == 1


def test_a_signal_is_passed_on_though_nobody_reads_what_is_printed(worker, tmp_path, monkeypatch):
    """Ctrl-C of `vrft train … 2>&1 | tee log` ends tee, too."""
    out, into = os.pipe()
    os.close(out)
    monkeypatch.setattr("sys.stderr", os.fdopen(into, "w", buffering=1))
    worker(WORKER + PATIENT.format(name="SIGINT", then='time.sleep(0.5); (run_dir / "saved").touch()'))
    assert start_worker(tmp_path, settings()) == 130
    assert (tmp_path / "saved").exists()


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path):
    meeting = {"nnodes": 2, "node_rank": 0, "rdzv_id": "vrft", "rdzv_timeout_s": 60}
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        endpoint = f"node1:{other.getsockname()[1]}"
        launch = TorchrunLaunch.model_construct(name="torchrun", nproc_per_node=1, rdzv_endpoint=endpoint, **meeting)
        with pytest.raises(UserError, match=rf"launch.rdzv_endpoint is {endpoint}, .*Address already in use"):
            start_worker(tmp_path, Config.model_construct(launch=launch))


def test_a_signal_that_reaches_every_process_counts_once(worker, tmp_path):
    """As a scheduler may send it: the worker has it from there, and once more from the parent."""
    then = """
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
    (run_dir / "saved").touch()
"""
    worker(WORKER + PATIENT.format(name="SIGTERM", then=then))
    assert start_worker(tmp_path, settings()) == 143
    assert (tmp_path / "saved").exists()


def test_a_scheduler_that_sends_several_signals_does_not_kill(worker, tmp_path):
    """A warning, then a SIGTERM, to a run that is patient."""
    then = """
    time.sleep(0.3)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.5)
    (run_dir / "saved").touch()
"""
    worker(WORKER + PATIENT.format(name="SIGUSR2", then=then))
    assert start_worker(tmp_path, settings(), is_patient=True) == 140
    assert (tmp_path / "saved").exists()


def test_of_several_machines_each_watches_its_own_processes(worker, tmp_path, capfd):
    """The clock of another machine may be far behind, and its process numbers mean others here."""
    other = health.Status()
    other.begin(tmp_path, 1, node=1)
    other.say(doing="train", step=3, state="runs")
    (word,) = health.read_statuses(tmp_path)
    old = tmp_path / health.FOLDER / "rank_1.json"
    source = f"""
import json
status.fall_silent()
(run_dir / "health" / "rank_1.json").write_text(json.dumps({word} | {{"time": 0.0}}))
status.begin(run_dir, 0)
for step in range(8):
    status.say(doing="train", step=step)
    time.sleep(0.1)
status.say(state="finished", code=0)
"""
    worker(WORKER + source)
    assert start_worker(tmp_path, settings(watchdog_s=0.5)) == 0
    assert old.exists()
    assert capfd.readouterr().err == ""


def test_a_machine_forgets_its_own_words_and_the_first_all(tmp_path):
    for rank in range(4):
        health.Status().begin(tmp_path, rank, node=rank // 2)
    assert [word["rank"] for word in health.read_statuses(tmp_path, 1)] == [2, 3]
    health.remove_statuses(tmp_path, 1)
    assert [word["rank"] for word in health.read_statuses(tmp_path)] == [0, 1]
    health.remove_statuses(tmp_path)
    assert health.read_statuses(tmp_path) == []


def test_a_signal_that_was_ignored_stays_so(worker, tmp_path, monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        worker(WORKER + "os.kill(os.getppid(), signal.SIGHUP); time.sleep(0.5); (run_dir / 'done').touch()")
        assert start_worker(tmp_path, settings()) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(("said", "code"), [("state='finished', code=2", 2), ("state='failed', error='E: x'", 1)])
def test_what_goes_wrong_after_a_signal_is_not_taken_for_saved(worker, tmp_path, capfd, said, code):
    worker(WORKER + PATIENT.format(name="SIGTERM", then=f"status.say({said}); raise SystemExit({code})"))
    assert start_worker(tmp_path, settings()) == code
    assert ("at rows a, b: E: x" in capfd.readouterr().err) == (code == 1)


def test_a_signal_that_comes_when_all_is_done_changes_nothing(worker, tmp_path):
    worker(WORKER + PATIENT.format(name="SIGTERM", then="status.say(state='finished', code=0); raise SystemExit(0)"))
    assert start_worker(tmp_path, settings()) == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_the_worker_and_its_children_at_once(worker, tmp_path, name):
    then = f"""
    child = os.fork() or signal.pause()
    (run_dir / "child").write_text(str(child))
    os.kill(os.getppid(), signal.{name})
    time.sleep(60)
"""
    worker(WORKER + PATIENT.format(name=name, then=then))
    begun = time.monotonic()
    assert start_worker(tmp_path, settings()) == 128 + getattr(signal, name)
    assert time.monotonic() - begun < 30
    assert dies(int((tmp_path / "child").read_text()))


def dies(process: int) -> bool:
    """Whether a process is dead soon, perhaps not yet collected."""
    until = time.monotonic() + 10
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
    return True


def test_a_worker_that_has_not_begun_is_ended_at_once(worker, tmp_path):
    worker("import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    assert start_worker(tmp_path, settings()) == 143


def test_outside_of_training_a_signal_ends_the_worker(worker, tmp_path):
    worker(WORKER + "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)")
    assert start_worker(tmp_path, settings()) == 143


def test_a_silent_worker_is_ended_and_its_stack_written(worker, tmp_path, capfd):
    source = """
import faulthandler
faulthandler.register(signal.SIGUSR1, file=(run_dir / "health" / "stack_0.txt").open("w"), all_threads=True)
def stuck_here():
    time.sleep(60)
stuck_here()
"""
    worker(WORKER + source)
    assert start_worker(tmp_path, settings(watchdog_s=0.5)) == 124
    told = capfd.readouterr().err
    assert "no word for launch.watchdog_s=0.5 seconds" in told
    assert f"rank 0 in train step 3, at rows a, b; its stack: {tmp_path / 'health' / 'stack_0.txt'}" in told
    assert "without a word" not in told
    assert "stuck_here" in (tmp_path / "health" / "stack_0.txt").read_text()


def test_a_worker_that_speaks_is_left_alone(worker, tmp_path):
    worker(WORKER + "\nfor step in range(20):\n    status.say(step=step)\n    time.sleep(0.1)\n")
    assert start_worker(tmp_path, settings(watchdog_s=1.0)) == 0


def test_a_run_that_has_finished_may_take_its_time_to_end(worker, tmp_path):
    source = """
for step in range(15):
    status.say(step=step)
    time.sleep(0.1)
status.say(state="finished", code=0)
time.sleep(0.5)
"""
    worker(WORKER + source)
    assert start_worker(tmp_path, settings(watchdog_s=1.0)) == 0


def test_nothing_is_awaited_before_work_begins(worker, tmp_path):
    worker(WORKER.replace('status.say(doing="train", step=3, rows=["a", "b"])', "time.sleep(1)"))
    assert start_worker(tmp_path, settings(watchdog_s=0.3)) == 0


def test_whatever_befalls_the_parent_the_worker_ends(worker, tmp_path, monkeypatch):
    worker(WORKER + "(run_dir / 'id').write_text(str(os.getpid())); time.sleep(60)")

    def fail(run_dir, node):
        if (tmp_path / "id").exists():
            raise MemoryError
        return []

    monkeypatch.setattr(health, "read_statuses", fail)
    with pytest.raises(MemoryError):
        start_worker(tmp_path, settings())
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(int((tmp_path / "id").read_text()))], timeout=10)
    assert not psutil.pid_exists(int((tmp_path / "id").read_text()))


OF_TWO = """
import os, signal, sys, time
from pathlib import Path
from vrft.run import health
run_dir = Path(sys.argv[1])
ids = []
for rank in (0, 1):
    if not (child := os.fork()):
        status = health.Status()
        status.listen()
        status.begin(run_dir, rank)
        status.say(doing="before: test", rows=[f"row-{{rank}}"])
        {worker}
        os._exit(1)
    ids.append(child)
while len(health.read_statuses(run_dir)) < 2:
    time.sleep(0.01)
time.sleep(0.5)
{torchrun}
"""


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("status.say(state='failed', error='RuntimeError: no') if rank else time.sleep(60)", "RuntimeError: no"),
        ("time.sleep(0.3) if rank else time.sleep(60)", "ended without a word"),
    ],
)
def test_a_failure_outside_of_training_is_not_taken_for_an_interruption(worker, tmp_path, capfd, fails, told):
    """torchrun ends the others by SIGTERM, and they leave with 143."""
    worker(OF_TWO.format(worker=fails, torchrun="os.waitpid(ids[1], 0); os.kill(ids[0], 15); time.sleep(0.5); exit(1)"))
    assert start_worker(tmp_path, settings()) == 1
    assert f"rank 1 in before: test, at rows row-1: {told}" in capfd.readouterr().err


def test_where_torchrun_is_killed_its_processes_save_and_stop(worker, tmp_path):
    source = """
        with status.patience():
            while not status.received():
                time.sleep(0.01)
            time.sleep(0.5)
        (run_dir / f"saved_{rank}").touch()
        status.say(state="finished", code=143)
"""
    worker(OF_TWO.format(worker=source.strip(), torchrun="os.kill(os.getpid(), signal.SIGKILL)"))
    assert start_worker(tmp_path, settings()) == 143
    assert all((tmp_path / f"saved_{rank}").exists() for rank in (0, 1))


def test_a_process_that_outlives_torchrun_and_says_nothing_is_ended(worker, tmp_path):
    source = "health.end_with_parent(0); signal.signal(signal.SIGUSR1, signal.SIG_IGN); time.sleep(600)"
    worker(OF_TWO.format(worker=source, torchrun="os.kill(os.getpid(), signal.SIGKILL)"))
    assert start_worker(tmp_path, settings(watchdog_s=2)) == 124
    assert all(dies(one["pid"]) for one in health.read_statuses(tmp_path))


PATIENT_ALONE = """
with status.patience():
    (run_dir / "ready").write_text(str(os.getpid()))
    while not status.received():
        time.sleep(0.01)
(run_dir / "saved").touch()
"""
NOT_YET = """
import os, sys, time
from pathlib import Path
(Path(sys.argv[1]) / "ready").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize(("source", "is_saved"), [(WORKER + PATIENT_ALONE, True), (NOT_YET, False)])
def test_a_worker_whose_parent_is_killed_ends_and_in_training_saves(tmp_path, source, is_saved):
    parent = f"""
import sys
from pathlib import Path
from vrft.config.launch_schema import LocalLaunch
from vrft.config.schema import Config
from vrft.run import processes
launch = LocalLaunch.model_construct(name="local", nproc_per_node=1, threads=None, watchdog_s=None)
processes.worker_command = lambda run_dir, config: [sys.executable, "-c", {source!r}, str(run_dir)]
processes.start_worker(Path({str(tmp_path)!r}), Config.model_construct(launch=launch))
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    while not ((tmp_path / "ready").exists() and (tmp_path / "ready").read_text()):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert dies(int((tmp_path / "ready").read_text()))
    assert (tmp_path / "saved").exists() == is_saved


def test_what_is_not_the_workers_gets_no_signal(worker, tmp_path):
    """Though a run directory from elsewhere names it."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    made_up = {"rank": 7, "pid": bystander.pid, "state": "runs", "doing": "train", "time": 0.0}
    (tmp_path / "elsewhere").mkdir()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "health").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "rank_7.json").write_text(json.dumps(made_up))
    worker(WORKER + "time.sleep(0.5)")
    assert start_worker(run_dir, settings(watchdog_s=5)) == 0
    source = f"(run_dir / 'health' / 'rank_7.json').write_text({json.dumps(made_up)!r}); time.sleep(60)"
    worker(WORKER + source)
    assert start_worker(run_dir, settings(watchdog_s=5)) == 124
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert (tmp_path / "elsewhere" / "rank_7.json").exists()


def test_a_workers_children_can_be_terminated_and_do_not_speak_for_it(worker, tmp_path):
    """As those that a reward term of the user's own starts."""
    source = """
with status.patience():
    if not (child := os.fork()):
        status.say(doing="somewhere else")
        time.sleep(60)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    (word,) = health.read_statuses(run_dir)
    (run_dir / "seen").write_text(f"{os.WTERMSIG(status)} {word['state']} {word['doing']}")
"""
    worker(WORKER + source)
    assert start_worker(tmp_path, settings()) == 0
    assert (tmp_path / "seen").read_text() == f"{int(signal.SIGTERM)} runs train"


def word(rank, state, time=0.0, **what):
    return {"rank": rank, "state": state, "time": time, **what}


@pytest.mark.parametrize(
    ("words", "gone", "told"),
    [
        ([], {}, "ended before it began"),
        ([word(0, "runs")], {}, "rank 0 in its beginning: ended without a word"),
        (
            [word(0, "failed", 2.0, error="RuntimeError: connection closed"), word(1, "runs", doing="train", step=7,
             rows=["a", "b"])],
            {0: 2.4, 1: 2.1},  # noticed a little later than the other failed for want of it
            "rank 1 in train step 7, at rows a, b: ended without a word",
        ),
        (
            [word(0, "failed", 2.0, error="RuntimeError: lost"), word(1, "failed", 1.0, error="ValueError: 3")],
            {},
            "rank 1 in its beginning: ValueError: 3",
        ),
        ([word(0, "interrupted"), word(1, "failed", error="E: x", rows=list("abcdefghij"))], {}, "c, d, e, f, g, h, …"),
        (
            [word(0, "interrupted", doing="train", step=7)],
            {0: 5.0},  # a scheduler's grace was over
            "rank 0 in train step 7: was killed before it had saved this step",
        ),
        (
            [word(0, "runs", 1.0, doing="train"), word(1, "failed", 2.0, error="ValueError: 3")],
            {0: 32.0, 1: 2.1},  # waiting on its GPU until torchrun killed it
            "rank 1 in its beginning: ValueError: 3",
        ),
    ],
)  # fmt: skip
def test_the_process_that_brought_the_others_down_is_named(tmp_path, words, gone, told):
    assert told in first_failure(tmp_path, words, gone)


def test_a_worker_that_is_interrupted_by_somebody_else_is_not_called_a_failure(worker, tmp_path, capfd):
    worker(WORKER + PATIENT.format(name="SIGTERM", then="").replace("os.getppid()", "os.getpid()"))
    assert start_worker(tmp_path, settings()) == 143
    assert capfd.readouterr().err == ""


def test_a_signal_in_the_middle_of_a_word_disturbs_neither(worker, tmp_path):
    """torchrun ends the other processes by SIGTERM when one fails; that these were interrupted has to stand."""
    source = """
write = health.write_text_atomically
def interrupted_write(path, text):
    path.with_name(path.name + ".partial").write_text(text[:3])  # as far as it came
    os.kill(os.getpid(), signal.SIGTERM)
    write(path, text)
health.write_text_atomically = interrupted_write
with status.patience():
    status.say(step=4)
time.sleep(0.1)
os._exit(1)
"""
    worker(WORKER + source)
    assert start_worker(tmp_path, settings()) == 1
    (word,) = health.read_statuses(tmp_path)
    assert (word["step"], word["state"]) == (4, "interrupted")


def test_torchruns_code_is_that_of_its_workers(worker, tmp_path):
    worker(WORKER + "status.say(state='finished', code=3); raise SystemExit(1)")
    assert start_worker(tmp_path, settings()) == 3

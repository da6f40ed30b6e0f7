"""The READMEs' code is the project's own and runs; their commands are ones that the project accepts."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from commands import check_vrft, commands_in
from PIL import Image

from vrft.cli.reward import reward_cases
from vrft.cli.verbs import VERBS
from vrft.config.package_files import TINY_MODEL, config_folder
from vrft.tasks import load_task
from vrft.tasks.audit import audit
from vrft.tasks.boxes import Frame
from vrft.tasks.reward import RewardFunction

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / name for name in ("conf", "launch", "sweeps", "tests", "vrft")]
READMES = sorted([ROOT / "README.md", *(path for folder in FOLDERS for path in folder.rglob("README.md"))])
ELSEWHERE = {  # commands that this test cannot check, and what they need
    "launch/torchrun.sh": "several machines",
    "launch/vllm_server.sh": "a GPU and vLLM",
    "sbatch": "a SLURM cluster",
    "source": "the user's shell",
    "wandb": "an account of Weights & Biases",
}
LONGEST = 200  # lines of the main README

pytestmark = pytest.mark.usefixtures("hydra_reads_the_tree")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def block(text: str, language: str, containing: str) -> str:
    """The one fenced block of that language with these words."""
    [found] = [code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if containing in code]
    return found


def examples_of_help(verb: str) -> str:
    """The examples of `vrft VERB --help` as a bash block; what stands behind two blanks is a remark."""
    text = (config_folder() / f"{verb}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\\\n *", "", text)
    lines = [line.strip() for line in text.splitlines()]
    examples = [re.split(r" {2,}", line)[0] for line in lines if line.startswith(f"vrft {verb} ")]
    return "```bash\n" + "\n".join(examples) + "\n```"


COMMANDS = sorted({tuple(words) for path in READMES for words in commands_in(path.read_text(encoding="utf-8"))})
VRFT = [words[1:] for words in COMMANDS if words[0] == "vrft"]
EXAMPLES = sorted({tuple(words[1:]) for verb in VERBS for words in commands_in(examples_of_help(verb))})


@pytest.fixture(autouse=True)
def users_folder(tmp_path, monkeypatch):
    """The current folder has what the commands name: a checkpoint, and the user's own package."""
    package = tmp_path / "my_pkg"
    package.mkdir()
    (package / "rewards.py").write_text(block(text_of("conf/reward/README.md"), "python", "def upright"))
    (tmp_path / "my.py").write_text("def term(parsed, row, image_paths):\n    return 1.0\n")
    (package / "defects.py").write_text(block(text_of("README.md"), "python", "class DefectTask"))
    shutil.copy(ROOT / "vrft/tasks/counting.py", package / "counting.py")
    for checkpoint in ("runs/NAME/checkpoints/best", "runs/rft/checkpoints/best", "runs/X/checkpoints/best"):
        (tmp_path / checkpoint).parent.mkdir(parents=True)
        (tmp_path / checkpoint).symlink_to(TINY_MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my", "my_pkg")]:
        del sys.modules[name]


def test_the_main_readme_is_short_and_no_line_is_long():
    assert len(READMES) >= 17
    assert len(text_of("README.md").splitlines()) <= LONGEST
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in READMES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 140 and not line.startswith("|")
    ]
    assert long == []


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(path):
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_command_is_of_a_known_kind():
    known = {"vrft", "make", ".venv/bin/python", "python", "pip", *ELSEWHERE}
    kinds = Counter(words[0] for words in COMMANDS)
    assert kinds.keys() <= known, kinds.keys() - known
    assert kinds.keys() >= ELSEWHERE.keys()
    assert kinds["vrft"] >= 60
    assert {words[0] for words in VRFT} == {"--help", *VERBS}
    assert {words[0] for words in VRFT if len(words) > 1} == set(VERBS), "each verb is shown at work"
    assert len(EXAMPLES) >= 40


@pytest.mark.parametrize("words", VRFT, ids=" ".join)
def test_every_vrft_command_composes_and_passes_the_checks(words):
    check_vrft(words)


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_every_example_of_a_help_text_does_too(words):
    check_vrft(words)


def test_every_target_of_make_exists():
    targets = {words[1] for words in COMMANDS if words[0] == "make"}
    assert len(targets) >= 10
    assert targets <= set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.MULTILINE))


def test_every_script_exists_and_knows_its_options():
    scripts = [words[1:] for words in COMMANDS if words[0].endswith("python")]
    assert len(scripts) >= 6
    for name, *options in scripts:
        if name == "-m":
            module = {"vrft.run.worker": "vrft/run/worker.py", "base_model.pretrain": "tests/base_model/pretrain.py"}
            name, options = module[options[0]], options[1:]
        source = text_of(name)
        assert [option for option in options if option.startswith("--") and f'"{option}"' not in source] == [], name


@pytest.mark.slow
def test_every_script_with_options_answers_help():
    scripts = sorted({words[1] for words in COMMANDS if words[0] == ".venv/bin/python" and words[1] != "-m"})
    with_options = [name for name in scripts if "argparse" in text_of(name)]
    assert len(with_options) >= 2
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for name in with_options:
        command = [sys.executable, str(ROOT / name), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage:")


def test_every_extra_that_pip_is_asked_for_exists():
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    named = {extra for path in READMES for extra in re.findall(r"'vrft\[(\w+)\]'", path.read_text(encoding="utf-8"))}
    assert len(named) >= 4
    assert named <= extras.keys()


def test_a_command_that_is_wrong_is_found():
    text = (
        "```bash\nvrft train experiment=digits_riddles \\\n     memory.num_generation=4   # a typo\n```\nor `make tst`"
    )
    [typo, target] = commands_in(text)
    assert target == ["make", "tst"]
    with pytest.raises(Exception, match="num_generation"):
        check_vrft(typo[1:])


def test_the_example_of_a_whole_task_is_the_task():
    readme = text_of("vrft/tasks/README.md")
    assert block(readme, "python", "CountingTask") == text_of("vrft/tasks/counting.py")
    shown = yaml.safe_load(block(readme, "yaml", "name: counting"))
    assert shown == yaml.safe_load(text_of("conf/task/counting.yaml"))


def test_the_example_of_a_format_of_ones_own_runs(users_folder):
    readme = text_of("vrft/data/README.md")
    (users_folder / "csv_boxes.py").write_text(block(readme, "python", "csv.DictReader"))
    lines = ["image,phrase,x1,y1,x2,y2"]
    for number in range(9):
        Image.new("RGB", (64, 48), (20 * number, 0, 0)).save(users_folder / f"{number}.png")
        lines.append(f"{number}.png,the cup,1,2,30,40")
    (users_folder / "boxes.csv").write_text("\n".join([*lines, "8.png,the cup,1,2,30,"]))
    options = yaml.safe_load(block(readme, "yaml", "builder: csv_boxes"))
    options |= {"path": "boxes.csv", "n_validation": 2, "n_test": 3, "on_bad_row": "skip"}
    module = importlib.util.spec_from_file_location("csv_boxes", users_folder / "csv_boxes.py")
    format_of_ones_own = importlib.util.module_from_spec(module)
    module.loader.exec_module(format_of_ones_own)
    rows = format_of_ones_own.build(options, task=load_task("grounding"), out_dir=users_folder / "out", seed=0)
    assert {name: len(part) for name, part in rows.items()} == {"train": 4, "validation": 2, "test": 3}
    skipped = (users_folder / "out" / "skipped.json").read_text(encoding="utf-8")
    assert "boxes.csv, line 11: four numbers are needed" in skipped


def test_the_example_of_a_term_of_ones_own_runs():
    cases = [
        {"completion": f"<answer>{box}</answer>", "solution": "(0,0),(100,200)"}
        for box in ("(0,0),(100,200)", "(0,0),(200,100)", "nothing")
    ]
    reward = {"weights": {"my_pkg.rewards.upright": 0.5}}
    verdicts = reward_cases(cases, task="grounding", reward=reward, trust_code=["my_pkg.rewards"])
    assert [verdict["total"] for verdict in verdicts] == [0.5, 0.0, 0.0]
    task = load_task("my_pkg.counting.CountingTask", trust_code=["my_pkg"], thinking="none")
    [verdict] = reward_cases([{"completion": "<answer>3</answer>", "solution": "3"}], task=task)
    assert verdict["terms"] == {"accuracy": 1.0, "count": 1.0, "format": 1.0}


def test_the_ten_lines_of_a_task_of_ones_own_are_a_task():
    task = load_task("my_pkg.defects.DefectTask", trust_code=["my_pkg"])
    row = {"row_id": "1", "image_wh": [640, 480], **task.examples[0]}
    preset = yaml.safe_load(text_of("conf/reward/strict.yaml"))
    judge = RewardFunction(task, preset)
    outcomes = list(
        audit(task, [row], judge=judge, frame_for_row=lambda row: Frame("norm1000", (640, 480), (640, 480)))
    )
    assert len(outcomes) >= 10
    assert [one["attack"] for one in outcomes if one["succeeds"]] == []

"""The READMEs' code is the project's own, and runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from vrft.cli.reward import judge_cases
from vrft.tasks import load_task

ROOT = Path(__file__).parents[2]


def block(text: str, language: str, containing: str) -> str:
    """The one fenced block of that language with these words."""
    [found] = [code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if containing in code]
    return found


FOLDERS = [ROOT / name for name in ("conf", "launch", "tests", "vrft")]
READMES = [ROOT / "README.md", *(path for folder in FOLDERS for path in folder.rglob("README.md"))]


@pytest.mark.parametrize("path", READMES, ids=str)
def test_every_link_within_the_project_leads_somewhere(path):
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_example_of_a_task_is_the_task():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert block(readme, "python", "CountingTask") == (ROOT / "vrft/tasks/counting.py").read_text(encoding="utf-8")
    shown = yaml.safe_load(block(readme, "yaml", "name: counting"))
    assert shown == yaml.safe_load((ROOT / "conf/task/counting.yaml").read_text(encoding="utf-8"))


def test_the_example_of_a_term_of_ones_own_runs(tmp_path, monkeypatch):
    readme = (ROOT / "conf/reward/README.md").read_text(encoding="utf-8")
    package = tmp_path / "readme_pkg"
    package.mkdir()
    (package / "rewards.py").write_text(block(readme, "python", "def upright"))
    (package / "counting.py").write_text((ROOT / "vrft/tasks/counting.py").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    cases = [
        {"completion": f"<answer>{box}</answer>", "solution": "(0,0),(100,200)"}
        for box in ("(0,0),(100,200)", "(0,0),(200,100)", "nothing")
    ]
    reward = {"weights": {"readme_pkg.rewards.upright": 0.5}}
    verdicts = judge_cases(cases, task="grounding", reward=reward, trust_code=["readme_pkg.rewards"])
    assert [verdict["total"] for verdict in verdicts] == [0.5, 0.0, 0.0]
    task = load_task("readme_pkg.counting.CountingTask", trust_code=["readme_pkg"], thinking="none")
    [verdict] = judge_cases([{"completion": "<answer>3</answer>", "solution": "3"}], task=task)
    assert verdict["terms"] == {"accuracy": 1.0, "count": 1.0, "format": 1.0}

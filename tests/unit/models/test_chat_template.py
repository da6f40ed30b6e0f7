"""Chat templates that never end, grow, raise or say nothing: refused by the model's name, in a process with limits."""

from __future__ import annotations

import shutil
import time

import pytest

from vrft.config.package_files import TINY_MODEL
from vrft.errors import UserError
from vrft.models import chat_template
from vrft.models.load import load_processor

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"


@pytest.fixture
def load(tmp_path):
    """`load(template)`: the processor of the tiny model with another template, in a folder without weights."""
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_MODEL / name, tmp_path)

    def run(template: str):
        (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
        return load_processor(str(tmp_path), min_pixels=1, max_pixels=3136)

    return run


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (DOUBLES, "MemoryError"),
        ("{{ 1/0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for i in [1] %}" * 25 + "{% endfor %}" * 25, "too many statically nested blocks"),
        ("{{ raise_exception('theirs') }}", "theirs"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages[5].content }}", "UndefinedError"),
        ("", "does not have a chat template"),
        ("{# nothing #}", "leaves the question out"),
        ("a prompt of its own", "leaves the question out"),
    ],
)
def test_a_template_that_cannot_serve_is_refused_by_the_models_name(load, tmp_path, template, said):
    with pytest.raises(UserError, match=rf"^model.path={tmp_path}: the model's chat template .*{said}"):
        load(template)


def test_a_template_without_end_is_ended(load, monkeypatch):
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    before = time.process_time()
    with pytest.raises(UserError, match="chat template takes more than 1 s"):
        load(LOOPS)
    assert time.process_time() - before < 1, "it runs in a process of its own"


def test_a_usual_template_passes(load):
    load((TINY_MODEL / "chat_template.jinja").read_text(encoding="utf-8"))

"""Commands as documents show them, and whether one would be accepted: composed and checked, but not run."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator, Sequence

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser

from vrft.cli.verbs import VERBS
from vrft.config.freeze import freeze, freeze_plain

_BASH = re.compile(r"```bash\n(.*?)```", re.DOTALL)
_FENCED = re.compile(r"```.*?```", re.DOTALL)
_INLINE = re.compile(
    r"`((?:\w+=\S+ )?(?:vrft|make|(?:\.venv/bin/)?python|launch/\w+\.sh|sbatch|source|wandb|hf) [^`]+)`"
)
_BEFORE = {"setsid", "nohup", "--", "&&"}


def commands_in(text: str) -> list[list[str]]:
    """Every command of the bash blocks and of the inline code of a Markdown text, as words.

    Comments, redirections and variables of the environment are left out; shell variables of a block are put in.
    """
    found = []
    for block in _BASH.findall(text):
        found += _of_block(block)
    for inline in _INLINE.findall(_FENCED.sub("", text)):
        found += _of_block(" ".join(inline.split()))
    return found


def _of_block(block: str) -> Iterator[list[str]]:
    variables: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        if given := re.fullmatch(r'(\w+)="(.*)"', line.strip()):
            variables[given[1]] = given[2]
            continue
        for name, value in variables.items():
            line = re.sub(rf"\${name}\b", value, line)
        for part in re.split(r" && | > ", line):
            words = [word for word in shlex.split(part, comments=True) if word not in _BEFORE]
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and not words[0].endswith(".log"):
                yield words


def check_vrft(words: Sequence[str]) -> None:
    """Compose and check `vrft VERB …` as the command line would, on a machine that lacks nothing.

    `…` is an experiment, or what a training of a given model needs besides. Of a swept value the first is taken.
    Raises what the command line would show.
    """
    verb, *overrides = words
    if verb.startswith("--") or not overrides:
        assert verb in {"--help", *VERBS}  # a name, not a command
        return
    known = VERBS[verb]
    if {"--help", "--cfg"} & set(overrides):
        overrides = [word for word in overrides if word not in ("--help", "--cfg", "job", "--resolve")]
    is_swept = "-m" in overrides
    assert known.is_swept or not is_swept, f"vrft {verb} takes no -m"
    has_model = any(word.startswith("model=") for word in overrides)
    stands_for = "trainer.max_steps=1" if has_model else "experiment=digits_riddles"
    known_words = {"…": stands_for, "experiment=…": "experiment=digits_riddles"}
    overrides = [known_words.get(word, word) for word in overrides if word != "-m"]
    config = compose(verb, [_first(word) if is_swept else word for word in overrides if not word.startswith("hydra")])
    if known.schema:
        frozen = freeze_plain(config, getattr(importlib.import_module("vrft.config.verb_schema"), known.schema))
        if verb == "score":
            assert list(importlib.import_module("vrft.cli.score").config_faults(frozen.plain())) == []
    else:
        freeze(config, verb=verb, device="cuda", overrides=overrides, is_remote=True)


def _first(word: str) -> str:
    """An override with the first of the values that it sweeps over."""
    [override] = OverridesParser.create().parse_overrides([word])
    if not override.is_sweep_override():
        return word
    swept = override.value()
    return f"{override.get_key_element()}={swept.list[0] if hasattr(swept, 'list') else swept.start}"

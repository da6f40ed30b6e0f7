"""What the command line offers: the verbs, how each one's config is frozen, and their help."""

from __future__ import annotations

import functools
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from vrft.config.package_files import config_folder


@dataclass(frozen=True)
class Verb:
    """One line of what it does, and one example.

    schema: in `vrft.config.verb_schema`, what its config may hold; None where that describes a run, with which the
    verb does what `vrft.config.work.WORK` says. is_swept: True if `-m` may run it many times.
    """

    summary: str
    example: str
    schema: str | None = None
    is_swept: bool = False


VERBS = {
    "build": Verb(
        "annotations in, checked rows out", "vrft build dataset=coco dataset.path=GT.json out=rows/coco", "BuildConfig"
    ),
    "check": Verb(
        "look at an experiment's rows before it runs",
        "vrft check experiment=digits_riddles",
    ),
    "probe": Verb("what the model earns before it is trained", "vrft probe experiment=digits_riddles"),
    "plan": Verb(
        "what it takes of a GPU's memory, and what makes it fit",
        "vrft plan experiment=virft_coco plan.gpu=a100_80gb",
    ),
    "train": Verb(
        "one whole experiment: evaluate, train, evaluate, report",
        "vrft train experiment=digits_riddles",
        is_swept=True,
    ),
    "evaluate": Verb(
        "judge a model or a checkpoint", "vrft evaluate model.path=runs/NAME/checkpoints/best", is_swept=True
    ),
    "predict": Verb("ask about one image", "vrft predict predict.image=scene.png predict.ask='two plus three'"),
    "reward": Verb(
        "what completions earn",
        "vrft reward task=detection cases=completions.jsonl out=out.jsonl",
        "RewardCasesConfig",
    ),
    "audit": Verb("can the reward be gamed?", "vrft audit task=detection reward=strict", "AuditConfig"),
    "score": Verb(
        "figures of any predictions", "vrft score annotations=GT.json detections=DT.json out=scores.json", "ScoreConfig"
    ),
    "export": Verb(
        "a checkpoint as one folder, adapter merged",
        "vrft export model.path=runs/X/checkpoints/best out=DIR",
        "ExportConfig",
    ),
    "report": Verb("write report.html again", "vrft report runs=runs/NAME", "ReportConfig"),
}

FORMER_NAMES = {"judge": "reward"}  # the old names serve until the next version


# Hydra offers groups, files and keys; readline replaces only what stands behind an equals sign.
BASH_COMPLETION = r"""_vrft() {
    local line=${COMP_LINE:0:COMP_POINT} verb word
    read -r _ verb _ <<<"$line"
    word=${line##*[[:space:]]}
    if [[ $line != *[[:space:]]*[[:space:]]* ]]; then
        COMPREPLY=($(compgen -W "VERBS" -- "$word"))
        COMPREPLY=("${COMPREPLY[@]/%/ }")
        return
    fi
    COMPREPLY=($(compgen -W "$(COMP_LINE="vrft${line#*"$verb"}" vrft "$verb" -sc query=bash 2>/dev/null)" -- "$word"))
    if [[ $COMP_WORDBREAKS == *=* && $word == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
}
complete -o nospace -o default -F _vrft vrft"""


def overview() -> str:
    """The text of `vrft --help`."""
    lines = ["vrft: visual reinforcement fine-tuning of vision-language models.", ""]
    lines += ["usage: vrft VERB [GROUP=NAME] [KEY=VALUE] …", ""]
    for name, verb in VERBS.items():
        lines += [f"  {name:9} {verb.summary}", f"            {verb.example}"]
    lines += ["", "vrft VERB --help lists what the verb's config offers."]
    return "\n".join([*lines, 'TAB completes verbs, groups and keys after: eval "$(vrft completion bash)"'])


def verb_help(verb: str) -> str:
    """What the verb does, what it needs and examples; then its groups, as wide as the terminal.

    Hydra's own listing shows every group, and copies the config once for each: 1.5 s.
    """
    config = _primary(verb)
    purpose, _, rest = config["hydra"]["help"]["template"].partition("\n\n")
    how, has_groups, examples = rest.partition("$APP_CONFIG_GROUPS\n")
    needed = [key for key, value in _flat(config) if value == "???"]
    parts = [purpose, f"Needed: {', '.join(f'{key}=…' for key in needed)}" if needed else "", examples or rest]
    if has_groups:
        width = shutil.get_terminal_size((120, 24)).columns
        wrapped = functools.partial(textwrap.fill, width=width, initial_indent="  ", subsequent_indent=" " * 6)
        own = _groups_of(verb)
        lines = [wrapped(f"{group}: {', '.join(names)}") for group, names in groups().items() if group in own]
        parts.append(how + "\n".join(lines))
    return "\n\n".join(part.strip("\n") for part in parts if part)


def _primary(verb: str) -> dict:
    return yaml.safe_load((config_folder() / f"{verb}.yaml").read_text(encoding="utf-8"))


def _flat(config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _groups_of(verb: str) -> set[str]:
    """The groups of the verb's defaults list, and of the config that it extends."""
    found: set[str] = set()
    for entry in _primary(verb).get("defaults", []):
        if isinstance(entry, dict):
            found |= {key.removeprefix("override ") for key in entry}
        elif entry != "_self_":
            found |= _groups_of(entry)
    return found if VERBS[verb].is_swept else found - {"sweep"}


def groups() -> dict[str, list[str]]:
    """The names that each config group offers."""
    found: dict[str, list[str]] = {}
    for top in (config_folder(), config_folder("sweeps")):
        for path in sorted(top.rglob("*.yaml")):
            if path.parent != top:
                found.setdefault(path.parent.relative_to(top).as_posix(), []).append(path.stem)
    return dict(sorted(found.items()))

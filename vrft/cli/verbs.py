"""What the command line offers: the verbs, how each one's config is frozen, and their help."""

from __future__ import annotations

from dataclasses import dataclass

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


def overview() -> str:
    """The text of `vrft --help`."""
    lines = ["vrft: visual reinforcement fine-tuning of vision-language models.", ""]
    lines += ["usage: vrft VERB [GROUP=NAME] [KEY=VALUE] …", ""]
    for name, verb in VERBS.items():
        lines += [f"  {name:9} {verb.summary}", f"            {verb.example}"]
    return "\n".join([*lines, "", "vrft VERB --help lists what the verb's config offers."])


def verb_help(verb: str) -> str:
    """The verb's help text with the groups filled in (Hydra's own listing copies the config once a group: 1.5 s)."""
    text = yaml.safe_load((config_folder() / f"{verb}.yaml").read_text(encoding="utf-8"))["hydra"]["help"]["template"]
    listing = "".join(f"  {group}: {', '.join(names)}\n" for group, names in groups().items())
    return text.replace("$APP_CONFIG_GROUPS", listing)


def groups() -> dict[str, list[str]]:
    """The names that each config group offers."""
    found: dict[str, list[str]] = {}
    for top in (config_folder(), config_folder("sweeps")):
        for path in sorted(top.rglob("*.yaml")):
            if path.parent != top:
                found.setdefault(path.parent.relative_to(top).as_posix(), []).append(path.stem)
    return dict(sorted(found.items()))

"""What each verb does with the config of an experiment. The checks that apply follow from this table alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What a verb does.

    trains: True if it trains, or prepares a training, unless `evaluate.train` is false. takes_steps: True if it takes,
    tries or plans the training's steps; False if it looks at the rows alone. is_run: True if it needs task, reward,
    protocol and launch; False for a single image. loads_weights: True if it loads the weights on this machine.
    opens_engine: True if it generates as `rollout` says, by vLLM too.
    """

    trains: bool = False
    takes_steps: bool = False
    is_run: bool = True
    loads_weights: bool = False
    opens_engine: bool = False


_RUN = Work(trains=True, takes_steps=True, loads_weights=True, opens_engine=True)
WORK = {
    "train": _RUN,
    "evaluate": _RUN,  # its `evaluate.train` is false
    "check": Work(trains=True),
    "probe": Work(trains=True, takes_steps=True, loads_weights=True),
    "plan": Work(trains=True, takes_steps=True),
    "predict": Work(is_run=False, loads_weights=True),
}

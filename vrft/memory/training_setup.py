"""The part of a config that decides how much memory a run takes."""

from __future__ import annotations

from vrft.config.schema import DeepSpeed, Evaluate, Launch, Memory, Model, Rollout, Trainer
from vrft.config.section import Section


class Setup(Section):
    """What a plan reads and the changes that make it fit turn; of a config it is `config.part(Setup)`."""

    model: Model
    trainer: Trainer
    rollout: Rollout
    deepspeed: DeepSpeed
    memory: Memory
    launch: Launch
    evaluate: Evaluate

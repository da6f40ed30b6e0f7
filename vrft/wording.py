"""Composition errors in a user's words: which key, and what would be right there."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vrft.shapes import suggestion
from vrft.trl_fields import trl_fields

RULE_KEYS = ("above", "below", "of", "while_rising")  # what a rule of the alarms may have beside what it must

__all__ = ["composition_message", "suggestion"]


def composition_message(error: Exception) -> str:
    """The error's text; for an unknown key, the known ones beside it."""
    for cause in _causes(error):
        if (
            isinstance(cause, OmegaConfBaseException)
            and isinstance(cause.parent_node, DictConfig)
            and cause.key is not None
        ):
            return _unknown_key(str(cause.full_key), str(cause.key), cause.parent_node) or _text(error)
    return _text(error)


def _text(error: Exception) -> str:
    """The error's text without the folders that Hydra searched."""
    return str(error).partition("\nConfig search path:")[0].strip()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _unknown_key(full_key: str, key: str, parent: DictConfig) -> str | None:
    known = [str(name) for name in parent if name != "hydra"]
    if key in known:
        return None
    if full_key.startswith("trainer.args."):
        trainer = parent._get_root().trainer.name
        if key in trl_fields(trainer):
            return f"{full_key} is not in the file; add it with a plus: +{full_key}=…"
        return (
            f"no field {key!r} in TRL's config; {suggestion(key, trl_fields(trainer))}in the file: {', '.join(known)}"
        )
    place = full_key.rpartition(".")[0] or "the config"
    if place == "alarms.rules":
        rule = "{metric: …, above: …, action: warn, hint: …}"
        return f"no alarm {key!r}; {suggestion(key, known)}known: {', '.join(known)}; a new one: '+{full_key}={rule}'"
    if place == "launch.extra" or (place.startswith("alarms.rules.") and key in RULE_KEYS):
        return f"{full_key} is not in the file; add it with a plus: +{full_key}=…"
    return f"{place} has no key {key!r}; {suggestion(key, known)}known: {', '.join(known)}"

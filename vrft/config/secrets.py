"""Keys and values that look like secrets: they belong in the environment, never in a config, which is saved to disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vrft.config.section import flat

REMOVED = "(secret)"
_NAMES = re.compile(
    r"(^|_)(api_?key|access_?key(_id)?|private_?key|storage_?key|secret\w*|passw(or)?d|credentials?|jwt|token)$", re.I
)
_ORDINARY = {"eos_token", "pad_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token", "image_token"}
_FORMS = re.compile(
    # Hugging Face, GitHub, W&B, OpenAI, AWS: long runs of letters and digits, as no folder is called
    r"\b((hf_|gh[opsur]_)[A-Za-z0-9]{30,}|(github_pat_|wandb_v\d_[\w-]*|sk-(?:[a-z0-9]+-)*|AKIA)[A-Za-z0-9]{16,})"
    r"|://[^/\s:@]*:[^/\s@]+@"  # an address with a password
)
_SHORTEST = 8  # characters: a shorter value of an environment variable may be an ordinary word


def is_secret_name(name: str) -> bool:
    """True if a key or an environment variable of that name holds a secret.

    >>> [is_secret_name(name) for name in ("WANDB_API_KEY", "hub_token", "eos_token", "max_tokens", "SLURM_JWT")]
    [True, True, False, False, True]
    """
    return name.lower() not in _ORDINARY and _NAMES.search(name) is not None


def secret_keys(values: dict[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the dotted key of every text in nested values that looks like a secret or contains one of the environment.

    >>> list(secret_keys({"a": {"hub_token": "x", "b": "my-s3cret-word"}}, {"MY_TOKEN": "s3cret-word"}))
    ['a.hub_token', 'a.b']
    """
    known = [value for name, value in environment.items() if is_secret_name(name) and len(value) >= _SHORTEST]
    known = [value for value in known if not value.startswith("/")]  # the path of a file
    for key, value in flat(values):
        for text in _texts(value):
            is_named = is_secret_name(key.rpartition(".")[2]) and text and not text.startswith("${")
            if is_named or _FORMS.search(text) or any(secret in text for secret in known):
                yield key
                break


def without_secrets(values: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The nested values with `(secret)` in place of each secret.

    >>> without_secrets({"a": {"api_key": "x", "n": 1}}, {})
    {'a': {'api_key': '(secret)', 'n': 1}}
    """
    found = set(secret_keys(values, environment))
    return _replaced(values, found, "")


def _replaced(values: dict[str, Any], keys: set[str], prefix: str) -> dict[str, Any]:
    return {
        name: _replaced(value, keys, f"{prefix}{name}.")
        if isinstance(value, dict)
        else REMOVED
        if f"{prefix}{name}" in keys
        else value
        for name, value in values.items()
    }


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value, also those in lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(list(one.values()) if isinstance(one, dict) else one)

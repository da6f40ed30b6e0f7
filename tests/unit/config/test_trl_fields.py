"""The fields of TRL's configs, read without importing it."""

from __future__ import annotations

import dataclasses

import pytest

from vrft.config.trl_fields import FIXED, OWN_KEYS, trl_fields


@pytest.mark.parametrize(("trainer", "class_name"), [("grpo", "GRPOConfig"), ("sft", "SFTConfig")])
def test_fields_read_from_the_source_are_trls_own(trainer, class_name):
    import trl

    assert set(trl_fields(trainer)) == {field.name for field in dataclasses.fields(getattr(trl, class_name))}


def test_own_keys_are_fields_of_trl():
    assert {*OWN_KEYS, *FIXED} <= set(trl_fields("grpo"))
    assert not set(OWN_KEYS) & set(FIXED)

"""What is refused as a secret, and which folders are not."""

from __future__ import annotations

import pytest

from vrft.config.secrets import secret_keys


@pytest.mark.parametrize(
    ("value", "is_secret"),
    [
        ("hf_" + "aB" * 17, True),
        ("sk-proj-" + "aB3" * 10, True),
        ("sk-ant-api03-" + "aB3" * 10, True),
        ("ghp_" + "A1b" * 12, True),
        ("AKIA" + "A1" * 8, True),
        ("models/hf_qwen2_vl_2b_instruct", False),  # words with underscores between them, as folders are called
        ("sk-fold-1-of-cross-validation", False),
        ("runs/ghp_experiment_with_a_long_name", False),
    ],
)
def test_a_token_is_a_long_run_of_letters_and_digits(value, is_secret):
    assert list(secret_keys({"model": {"path": value}}, {})) == ["model.path"] * is_secret

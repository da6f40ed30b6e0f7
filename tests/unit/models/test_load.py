"""Models and processors that cannot be loaded: a message, whatever the library has raised."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vrft.config.package_files import TINY_MODEL
from vrft.errors import UserError
from vrft.memory.architectures import architecture
from vrft.models.load import load_model, load_processor


def raises_without_a_text(*_, **__):
    raise OSError


def test_an_error_without_a_text_becomes_a_message(monkeypatch, tmp_path):
    for one in (AutoModelForImageTextToText, AutoProcessor, AutoConfig):
        monkeypatch.setattr(one, "from_pretrained", raises_without_a_text)
    calls = [
        lambda: load_model(str(TINY_MODEL)),
        lambda: load_processor(str(TINY_MODEL), min_pixels=1, max_pixels=2),
        lambda: architecture({"path": str(tmp_path), "revision": None, "trust_remote_code": False}),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"model\.path=.*OSError"):
            call()

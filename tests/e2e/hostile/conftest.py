"""What the tests of hostile files share."""

from __future__ import annotations

import pickle
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from payloads import Payload, ran
from small_models import picture

from vrft.cli.main import main
from vrft.config.package_files import TINY_MODEL


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def refused(tmp_path, mark, monkeypatch, capfd):
    """`refused("train", "run.dir=…") -> what was said`; the exit code is 2, nothing has run. In the folder `here`."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> str:
        code = main(list(arguments))
        said = "".join(capfd.readouterr())
        assert not mark.exists(), f"the payload ran\n{said}"
        assert code == 2, said
        assert "Traceback" not in said
        return said

    return run


@pytest.fixture
def pickles(tmp_path, mark):
    """A payload in the files that torch, numpy and pickle read."""
    files = {kind: tmp_path / f"payload.{kind}" for kind in ("pt", "npy", "pickle")}
    torch.save(Payload(mark), files["pt"])
    np.save(files["npy"], np.array([Payload(mark)], dtype=object), allow_pickle=True)
    files["pickle"].write_bytes(pickle.dumps(Payload(mark)))
    return files


@pytest.fixture
def their_module(tmp_path, mark, refused):
    """A module in the current folder that leaves `mark` behind when it is imported."""
    file = tmp_path / "here" / "theirs.py"
    file.write_text(f"open({str(mark)!r}, 'w').close()\n\n\ndef term(parsed, row, images):\n    return 1.0\n")
    runpy.run_path(str(file))
    assert ran(mark)
    return file


@pytest.fixture
def predict(tmp_path, refused):
    """The words of `vrft predict` with a model's folder; the folder is a copy of the tiny model, to be changed."""
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    picture(56, 56).save(tmp_path / "scene.png")
    asked = (f"predict.image={tmp_path / 'scene.png'}", "predict.ask=seven", f"predict.out={tmp_path / 'out.png'}")
    return ("predict", *asked, f"model.path={tmp_path / 'model'}")

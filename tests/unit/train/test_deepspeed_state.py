"""What of DeepSpeed's state is read: its own plain records, and nothing that could run code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from vrft.train.deepspeed_state import readable_state


class Payload:
    """Touches a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_its_records_are_read_and_a_payload_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    state = {"loss_scaler": LossScaler(1.0), "zero_stage": ZeroStageEnum.weights, "at": fragment_address(4, 0)}
    torch.save(state, tmp_path / "good.pt")
    torch.save(state | {"more": Payload(tmp_path / "mark")}, tmp_path / "bad.pt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # as `vrft.run.worker` has it in every worker
    with readable_state():
        loaded = torch.load(tmp_path / "good.pt", weights_only=False)  # as DeepSpeed asks for it
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (loaded["zero_stage"], loaded["at"]) == (state["zero_stage"], state["at"])
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "good.pt", weights_only=False)
    assert not (tmp_path / "mark").exists()
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "mark").exists(), "the payload runs where it is read without care"

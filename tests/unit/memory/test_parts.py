"""What lives through a run: weights, gradients, master weights, Adam, by hand for the published models."""

from __future__ import annotations

import sys

import pytest

from vrft.errors import UserError
from vrft.memory import gpus
from vrft.memory.gpus import GIB, GPUS, gpu_at_hand, gpu_bytes
from vrft.memory.parts import Counts, Sharding, bytes_of_optimizer, states
from vrft.run.processes import find_device

N_2B, N_7B = 2_208_985_600, 8_291_375_616  # parameters of Qwen2-VL-2B and -7B Instruct, as their checkpoints have them
LARGEST = {N_2B: 151936 * 1536, N_7B: 152064 * 3584}  # the embeddings
BF16 = {n: Counts(n, 2 * n, n, 2 * n, LARGEST[n]) for n in (N_2B, N_7B)}

# GB (1e9) on one of 8 GPUs, worked out by hand: weights, gradients, master weights, Adam's m and v.
# 2B: weights 2 x 2.2089856 = 4.4179712; master 4 x = 8.8359424; Adam 8 x = 17.6718848.
# 7B: weights 2 x 8.291375616 = 16.582751232; master 33.165502464; Adam 66.331004928.
BY_HAND = {
    (N_2B, 1): (4.4179712, 4.4179712, 1.1044928, 2.2089856),  # the optimizer's 12 bytes over 8
    (N_2B, 2): (4.4179712, 0.5522464, 1.1044928, 2.2089856),  # gradients too
    (N_2B, 3): (0.5522464, 0.5522464, 1.1044928, 2.2089856),  # weights too
    (N_7B, 1): (16.582751232, 16.582751232, 4.145687808, 8.291375616),
    (N_7B, 2): (16.582751232, 2.072843904, 4.145687808, 8.291375616),
    (N_7B, 3): (2.072843904, 2.072843904, 4.145687808, 8.291375616),
}
NAMES = ("weights", "gradients", "master weights", "optimizer")


def gigabytes(parts: dict[str, int]) -> tuple[float, ...]:
    return tuple(parts[name] / 1e9 for name in NAMES)


@pytest.mark.parametrize(("n", "stage"), BY_HAND)
def test_states_of_the_published_models_by_hand(n, stage):
    found = states(BF16[n], Sharding(stage, 8))
    assert gigabytes(found.gpu) == pytest.approx(BY_HAND[n, stage], rel=1e-9)
    assert found.host == {}


@pytest.mark.parametrize(("n", "total"), [(N_2B, 35.3437696), (N_7B, 132.662009856)])  # 16 bytes a parameter
def test_without_deepspeed_float32_takes_sixteen_bytes_a_parameter(n, total):
    found = states(Counts(n, 4 * n, n, 4 * n), Sharding())
    assert sum(found.gpu.values()) / 1e9 == pytest.approx(total, rel=1e-9)
    assert (found.gpu["master weights"], found.gpu["buffers"], found.update["copies"]) == (0, 0, 0)
    assert states(Counts(n, 4 * n, n, 4 * n), Sharding(None, 2)).gpu["buffers"] == 4 * n  # DDP's


def test_on_one_gpu_deepspeed_takes_the_sixteen_bytes_of_mixed_precision():
    """2 weights, 2 gradients, 4 master, 8 Adam; and 2 and 4 more for the gradients' flat and float32 copies."""
    found = states(BF16[N_2B], Sharding(2, 1))
    assert sum(gigabytes(found.gpu)) == pytest.approx(35.3437696, rel=1e-9)
    assert found.update == {"gradients": 2 * N_2B, "copies": 6 * N_2B}


# GB on each of n GPUs while the optimizer steps: gradients, then their copies, worked out by hand.
# Stages 1 and 2 copy the process's share, flat in bfloat16 and in float32: 6 bytes a number; or, before, the norm takes
# the embeddings (233,373,696 and 544,997,376 numbers) in float64. Stage 3 copies sub-groups of 1e9 numbers.
UPDATE = {
    (N_2B, 1, 8): (0.5522464, 1.866989568),  # the norm: 8 x 0.233373696 is more than 6 x 0.2761232
    (N_2B, 2, 8): (0.5522464, 1.866989568),
    (N_2B, 3, 8): (0.5522464, 1.6567392),  # 6 x 0.2761232; of the embeddings it has an eighth
    (N_7B, 1, 8): (2.072843904, 6.218531712),  # 6 x 1.036421952
    (N_7B, 2, 8): (2.072843904, 6.218531712),
    (N_7B, 3, 8): (2.072843904, 6.218531712),  # 1e9 and the tensor that reaches it are more than the share
    (N_7B, 2, 2): (8.291375616, 24.874126848),  # 6 x 4.145687808
    (N_7B, 3, 2): (8.291375616, 7.634992128),  # 6 x (1 + 0.272498688), half of the embeddings
}


@pytest.mark.parametrize(("n", "stage", "n_processes"), UPDATE)
def test_the_update_by_hand(n, stage, n_processes):
    found = states(BF16[n], Sharding(stage, n_processes)).update
    assert (found["gradients"] / 1e9, found["copies"] / 1e9) == pytest.approx(UPDATE[n, stage, n_processes], rel=1e-9)


def test_the_update_of_gradients_in_float32():
    """Of float32 weights the share is copied once; of bfloat16 ones it lies flat, in stage 1 beside all the others."""
    whole = Counts(800, 3200, 800, 3200, 50)
    assert states(whole, Sharding(2, 8)).update == {"gradients": 400, "copies": 400}  # the norm: 8 x 50 too
    half = Counts(800, 1600, 800, 1600, 50)
    assert states(half, Sharding(2, 8, gradient_bytes=4)).update == {"gradients": 400, "copies": 400}
    assert states(half, Sharding(1, 8, gradient_bytes=4)).update == {"gradients": 3200, "copies": 400 + 400}
    assert states(half, Sharding(3, 8, gradient_bytes=4)).update == {"gradients": 400, "copies": 400}


@pytest.mark.parametrize("n", [N_2B, N_7B])
def test_offloading_moves_the_optimizer_and_the_weights_to_main_memory(n):
    optimizer = states(BF16[n], Sharding(3, 8, offloads_optimizer=True))
    assert gigabytes(optimizer.gpu) == pytest.approx((2 * n / 8e9, 0, 0, 0))
    assert optimizer.host == {"master weights": 4 * n // 8, "optimizer": 8 * n // 8, "gradients": 4 * n // 8}
    both = states(BF16[n], Sharding(3, 8, offloads_optimizer=True, offloads_weights=True), reference_bytes=2 * n)
    assert both.gpu["weights"] == both.gpu["reference"] == 0
    assert both.host["weights"] == both.host["reference"] == 2 * n // 8


def test_gradients_may_be_kept_in_float32():
    deepspeed = {"zero_optimization": {"stage": 2}, "data_types": {"grad_accum_dtype": "fp32"}}
    found = states(BF16[N_2B], Sharding.of(deepspeed, n_processes=8, hidden_size=1536))
    assert found.gpu["gradients"] == 4 * N_2B // 8


def test_what_lora_and_frozen_parts_leave():
    adapter = 18_464_768  # rank 16 on the seven projections of Qwen2-VL-2B's 28 layers
    found = states(Counts(N_2B + adapter, 2 * N_2B + 4 * adapter, adapter, 4 * adapter), Sharding())
    assert found.gpu["weights"] == 2 * N_2B + 4 * adapter
    assert (found.gpu["gradients"], found.gpu["optimizer"]) == (4 * adapter, 8 * adapter)


def test_buffers_of_each_stage():
    """Buckets of 5e8 gradients of 2 bytes, two where communication overlaps; stage 3 gathers at most 1e9 weights."""
    assert states(BF16[N_7B], Sharding(2, 8)).gpu["buffers"] == 2 * 500_000_000
    assert states(BF16[N_7B], Sharding(2, 8, overlaps=True)).gpu["buffers"] == 2 * 2 * 500_000_000
    gathered = Sharding(3, 8, overlaps=True, bucket=3584**2)
    assert states(BF16[N_7B], gathered).gpu["buffers"] == 2 * 2 * 3584**2 + 2 * 1_000_000_000
    small = Counts(80, 160, 80, 160)
    assert states(small, Sharding(3, 8, bucket=4)).gpu["buffers"] == 2 * 4 + 2 * 70  # what is not here already


def test_optimizers():
    assert bytes_of_optimizer({}) == 8
    assert (bytes_of_optimizer({"optim": "adamw_8bit"}), bytes_of_optimizer({"optim": "sgd"})) == (2, 0)


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("a100_80gb", 80),
        (48, 48),
        ("24gb", 24),
        ("24", 24),
        (1.5, 1.5),
        (4090, 24),  # the card, not its GiB
        ("NVIDIA GeForce RTX 3090", 24),
        ("a100 80GB", 80),
        ("NVIDIA A100-SXM4-80GB", 80),  # as nvidia-smi says it
        ("NVIDIA RTX A6000", 48),
        ("t4", 15),
    ],
)
def test_gpus(name, gib):
    assert gpu_bytes(name) == gib * GIB


class Driver:
    """libcuda.so.1 of GPUs of these sizes, as `CUDA_VISIBLE_DEVICES` leaves them."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes

    def cuInit(self, flags: int) -> int:
        return 0 if self.sizes else 100  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = len(self.sizes)
        return 0

    def cuDeviceGet(self, device, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceTotalMem_v2(self, size, device) -> int:
        size._obj.value = self.sizes[device.value]
        return 0


@pytest.mark.parametrize(("sizes", "found"), [((), None), ((80 * GIB,), 80 * GIB), ((80 * GIB, 24 * GIB), 24 * GIB)])
def test_the_smallest_visible_gpu_counts(monkeypatch, sizes, found):
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Driver(*sizes))
    assert gpu_at_hand() == found


class RocmDriver:
    """ROCm's functions have other names, and do the same."""

    def __init__(self, *sizes: int) -> None:
        one = Driver(*sizes)
        self.hipInit, self.hipGetDeviceCount, self.hipDeviceGet = one.cuInit, one.cuDeviceGetCount, one.cuDeviceGet
        self.hipDeviceTotalMem = one.cuDeviceTotalMem_v2


@pytest.mark.parametrize("library", ["torch/lib/libamdhip64.so", "libamdhip64.so", "libamdhip64.so.6"])
def test_where_torch_is_built_for_rocm_its_driver_is_asked(monkeypatch, tmp_path, library):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise MemoryError('the parent must not import it')")
    (tmp_path / "torch" / "version.py").write_text("cuda = None\nhip: str | None = '6.4.43482-0f2d60242'\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def load(name: str):
        if name != (str(tmp_path / library) if library.startswith("torch") else library):
            raise OSError(name)
        return RocmDriver(192 * GIB)

    monkeypatch.setattr(gpus.ctypes, "CDLL", load)
    assert gpu_at_hand() == 192 * GIB
    assert find_device() == "cuda"


def test_without_a_driver_the_device_is_the_cpu(monkeypatch):
    def load(name: str):
        raise OSError(name)

    monkeypatch.setattr(gpus.ctypes, "CDLL", load)
    assert find_device() == "cpu"


@pytest.mark.parametrize("name", ["a100", 1080, "8000gb", "a100_80", "", -3, 0, True, float("inf"), float("nan")])
def test_an_unknown_gpu_is_refused_by_its_key(name):
    with pytest.raises(UserError, match=r"^memory.gpu is .*known: .*a100_80gb.* or a number of GiB: memory.gpu=48$"):
        gpu_bytes(name, key="memory.gpu")
    assert len(GPUS) >= 10

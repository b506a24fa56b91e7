"""Each refusal of the table, in MPS's words, with one line that says it is simulated."""

from __future__ import annotations

import copy
import multiprocessing.reduction
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from conformance import simulate
from conformance.simulate import checks

DEVICE = "mps"


def on(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros on the simulated device."""
    return torch.zeros(*shape, device=DEVICE, dtype=dtype)


CASES: dict[str, list[Callable[[], object]]] = {
    "float64": [
        lambda: on(2).double(),
        lambda: on(2).to(torch.float64),
        lambda: torch.zeros(2, dtype=torch.float64).to(DEVICE),
        lambda: on(2, dtype=torch.float64),
        lambda: torch.tensor(np.zeros(2), device=DEVICE),
        lambda: torch.as_tensor(np.zeros(2), device=DEVICE),
        lambda: on(2).sum(dtype=torch.float64),
        lambda: torch.nn.Linear(2, 2).double().to(DEVICE),
    ],
    "complex128": [lambda: torch.zeros(2, dtype=torch.complex128).to(DEVICE)],
    "float8": [lambda: torch.zeros(2).to(torch.float8_e4m3fn).to(DEVICE)],
    "layout": [lambda: torch.eye(4).to_sparse_bsr((2, 2)).to(DEVICE)],
    "dimensions": [lambda: on(*[1] * 17)],
    "missing-operator": [
        lambda: torch.linalg.eigh(on(2, 2)),
        lambda: torch.linalg.svdvals(on(2, 2)),
        lambda: torch.quantize_per_tensor(on(2), 0.1, 0, torch.quint8),
        lambda: functional.ctc_loss(
            on(2, 1, 3), on(1, 1, dtype=torch.int64), (2,), (1,), zero_infinity=True
        ),
    ],
    "dtype-gap": [lambda: functional.relu(on(2, dtype=torch.bool))],
    "convolution-size": [
        lambda: functional.conv1d(on(1, 1, 65537), on(1, 1, 1)),
        lambda: functional.conv1d(on(1, 1, 65537), on(1, 1, 3), padding=1),
        lambda: functional.conv2d(on(1, 1, 1, 65538), on(1, 1, 1, 2)),
    ],
    "convolution-dtype": [
        lambda: functional.conv1d(on(1, 1, 8, dtype=torch.int64), on(1, 1, 1, dtype=torch.int64))
    ],
    "linear-dtype": [
        lambda: functional.linear(on(2, 2, dtype=torch.int64), on(2, 2, dtype=torch.int64))
    ],
    "adaptive-pool-size": [lambda: functional.adaptive_avg_pool2d(on(1, 1, 5, 5), 3)],
    "ndarray-size": [lambda: on(1).expand(2**31 - 8) + 1],
    "dimension-size": [lambda: on(1, dtype=torch.uint8).expand(2**31) + 1],
    "mixed-devices": [
        lambda: on(2) + torch.ones(2),
        lambda: torch.ones(2) + on(2),
        lambda: torch.ones(2).add_(on(2)),
        lambda: torch.cat([on(2), torch.ones(2)]),
        lambda: torch.where(on(2) > 0, torch.ones(2), on(2)),
        lambda: torch.ones(2) + on(2)[0],
        lambda: torch.ones(()).add_(on(2)[0]),
        lambda: torch.add(on(2), on(2), out=torch.zeros(2)),
    ],
    "mixed-devices-linear": [
        lambda: torch.nn.Linear(2, 2).to(DEVICE)(torch.ones(1, 2)),
        lambda: torch.nn.Linear(2, 2)(on(1, 2)),
        lambda: on(2, 2) @ torch.ones(2, 2),
    ],
    "mixed-devices-placeholder": [
        lambda: torch.nn.Embedding(2, 2).to(DEVICE)(torch.tensor([0])),
    ],
    "numpy": [
        lambda: on(2).numpy(),
        lambda: np.asarray(on(2)),
        lambda: on(2).__array__(),
    ],
    "shared-memory": [
        lambda: on(2).share_memory_(),
        lambda: on(2).untyped_storage().share_memory_(),
        lambda: multiprocessing.reduction.ForkingPickler.dumps(on(2)),
    ],
    "pin-memory": [lambda: on(2).pin_memory()],
    "pin-memory-host": [lambda: torch.ones(2).pin_memory()],
    "dlpack": [lambda: np.from_dlpack(on(2)), lambda: on(2).__dlpack__()],
    "generator": [
        lambda: torch.rand(2, device=DEVICE, generator=torch.Generator()),
        lambda: on(2).normal_(generator=torch.Generator("cpu")),
        lambda: torch.rand(2, generator=torch.Generator(DEVICE)),
    ],
    "generator-permutation": [
        lambda: torch.randperm(3, device=DEVICE, generator=torch.Generator()),
    ],
    "out-of-memory": [lambda: [torch.empty(2**30, device=DEVICE) for _ in range(5)]],
    "buffer-size": [
        lambda: torch.empty(2**31, device=DEVICE),
        lambda: torch.empty(1, device=DEVICE).resize_(2**32),
    ],
    "type-name": [lambda: torch.ones(1).type("torch.mps.FloatTensor")],
    "split-indices": [
        lambda: on(4).tensor_split(on(1, dtype=torch.int64)),
        lambda: torch.tensor_split(on(4), tensor_indices_or_sections=on(1, dtype=torch.int64)),
    ],
    "lengths": [
        lambda: pack_padded_sequence(on(2, 3, 1), torch.tensor([3, 2], device=DEVICE)),
    ],
    "transposed-3d-half": [
        lambda: functional.conv_transpose3d(
            on(1, 1, 2, 2, 2, dtype=torch.float16), on(1, 1, 2, 2, 2, dtype=torch.float16)
        ),
        lambda: torch.nn.ConvTranspose3d(1, 1, 2, device=DEVICE, dtype=torch.bfloat16)(
            on(1, 1, 2, 2, 2, dtype=torch.bfloat16)
        ),
    ],
    "storage-resize": [lambda: on(2).untyped_storage().resize_(0)],
    "qr-workspace": [lambda: torch.linalg.qr(on(2, 40000, 2))],
}


@pytest.mark.filterwarnings("ignore:Sparse BSR:UserWarning")
@pytest.mark.parametrize(
    ("code", "index"), [(code, index) for code in CASES for index in range(len(CASES[code]))]
)
def test_refused_in_the_words_of_mps(sim: simulate.Simulation, code: str, index: int) -> None:
    limit = simulate.LIMITS[code]
    with pytest.raises(limit.exception) as caught:
        CASES[code][index]()
    words, _, remark = str(caught.value).rpartition("\n")
    if code not in ("numpy", "dlpack") or "[mps-sim]" in str(caught.value):
        assert words.startswith(limit.message.split("{")[0])
        assert f"[mps-sim] simulated failure '{code}'" in remark
        assert limit.source in remark


def test_the_table_is_whole() -> None:
    before_sonoma = {"bfloat16"}
    sparse = {"missing-sparse-operator"}
    # Those that only say it otherwise than the host have their cases in test_refused_words.py.
    words = {
        "convolution-types",
        "convolution-signal",
        "indices",
        "nested-storage",
        "lstm-projections",
    }
    words |= {"adaptive-pool-mixed", "inverse-complex", "cholesky-inverse-dtype"}
    # What torch 2.11 refuses has its case in test_simulated_programs.py.
    words |= {"index-reduce-dtype", "grid-border"}
    assert set(CASES) | before_sonoma | sparse | words == set(simulate.LIMITS)
    for limit in simulate.LIMITS.values():
        assert limit.source
        assert limit.macos
        assert limit.torch


def test_sparse_operators_without_a_kernel(sim: simulate.Simulation) -> None:
    sparse = torch.eye(3).to_sparse().to(DEVICE)
    with pytest.raises(NotImplementedError, match=r"Could not run 'aten::.*'SparseMPS' backend"):
        sparse.cumsum(0)


@pytest.mark.parametrize(("macos", "refused"), [("13.6", True), ("14.0", False), ("15.5", False)])
def test_bfloat16_by_version(macos: str, refused: bool) -> None:
    with simulate.mps(macos=macos):
        if refused:
            with pytest.raises(TypeError, match="MPS BFloat16 is only supported on MacOS 14"):
                torch.ones(2, device=DEVICE).bfloat16()
        else:
            assert torch.ones(2, device=DEVICE).bfloat16().tolist() == [1, 1]


@pytest.mark.parametrize(
    "allowed",
    [
        lambda: functional.conv1d(on(1, 1, 65536), on(1, 1, 1)),
        lambda: torch.linalg.qr(on(30000, 2)),
        lambda: torch.linalg.qr(on(3, 0)),
        lambda: torch.empty(2**31 - 1, device=DEVICE),
        lambda: functional.conv1d(on(1, 1, 65538), on(1, 1, 3)),
        lambda: functional.conv_transpose1d(on(1, 1, 65537), on(1, 1, 2), stride=2),
        lambda: on(2) + torch.tensor(1.0),
        lambda: on(2) * torch.tensor(2.0, dtype=torch.float64),
        lambda: torch.where(on(2) > 0, torch.tensor(1.0), on(2)),
        lambda: on(3)[torch.tensor([0, 1])],
        lambda: on(3).index_put_((torch.tensor([0]),), on(1)),
        lambda: functional.adaptive_avg_pool2d(on(1, 1, 6, 6), 3),
        lambda: torch.linalg.svd(on(2, 2) + torch.eye(2).to(DEVICE)),
        lambda: on(2**20).expand(2**9, 2**20)[0] + 1,
        lambda: torch.empty(2**31, device="meta"),
    ],
)
@pytest.mark.filterwarnings("ignore:The operator:UserWarning")
def test_not_refused(sim: simulate.Simulation, allowed: Callable[[], object]) -> None:
    assert allowed() is not None


def test_missing_operators_fall_back_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    matrix = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    with simulate.mps() as simulation:
        with pytest.warns(UserWarning, match="will fall back to run on the CPU"):
            values = torch.linalg.eigvalsh(matrix.to(DEVICE))
        assert values.is_mps
        assert values.tolist() == [2, 3]
        torch.linalg.eigvalsh(matrix.to(DEVICE))
        places = simulation.recorder.fallbacks
        assert {name for name, _ in places} == {"aten::_linalg_eigh"}
        assert all(__file__ in where for _, where in places)
        with pytest.raises(NotImplementedError, match="Output channels > 65536"):
            functional.conv1d(on(1, 1, 65537), on(1, 1, 1))
        with pytest.raises(TypeError, match="float64"):
            on(1).double()


def test_a_failure_leaves_operands_as_they_were(sim: simulate.Simulation) -> None:
    x = on(2)
    twin = copy.deepcopy(x)
    with pytest.raises(RuntimeError):
        x.add_(torch.ones(2))
    assert torch.equal(x, twin)


def test_every_size_is_named_with_its_unit() -> None:
    text = str(checks.out_of_memory(512, 2048, 3 * 1024**2, 4 * 1024**3))
    assert "MPS allocated: 512 bytes" in text
    assert "other allocations: 1.50 KiB" in text
    assert "max allowed: 3.00 MiB" in text
    assert "allocate 4.00 GiB" in text


def test_another_path_of_a_composite_is_judged_by_its_own_parts(sim: simulate.Simulation) -> None:
    """What ran once says nothing of another flag, or of a matrix that has elements."""
    with pytest.warns(UserWarning, match="_linalg_svd"):
        torch.linalg.pinv(on(3, 3))
    torch.linalg.pinv(on(0, 0), hermitian=True)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match="_linalg_eigh"):
            torch.linalg.pinv(on(3, 3), hermitian=True)

"""Attention maps: head choice, filter and medians against their plain definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from acestep.alignment.attention import (
    _column_median,
    _row_median,
    contrast_map,
    energy_map,
    median_filter,
    to_host,
)
from acestep.errors import RequestError


def plain_filter(values: NDArray[Any], width: int) -> NDArray[Any]:
    half = width // 2
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(half, half)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)
    return np.asarray(np.sort(windows, axis=-1)[..., half])


def plain_contrast(heads: NDArray[Any], level: float, width: int) -> NDArray[Any]:
    """`contrast_map` in float64, in the order in which it is defined."""
    heads = heads.astype(np.float64)

    def softmax(values: NDArray[Any], axis: int) -> NDArray[Any]:
        powers = np.exp(values - values.max(axis=axis, keepdims=True))
        return np.asarray(powers / powers.sum(axis=axis, keepdims=True))

    product = softmax(heads, -1) * softmax(heads, -2)
    for axis in (-1, -2):
        median = np.quantile(product, 0.5, axis=axis, keepdims=True)
        product = np.maximum(product - level * median, 0)
    product = product**2
    score = (product - product.mean()) / (product.std() + 1e-9)
    return np.asarray(plain_filter(score, width).mean(axis=0))


@pytest.mark.parametrize("width", [1, 3, 5, 7, 9, 21])
@pytest.mark.parametrize("frames", [22, 30])
def test_median_filter_is_the_sorted_middle(width: int, frames: int) -> None:
    values = np.random.default_rng(width).integers(0, 9, (3, 4, frames)).astype(np.float32)
    filtered = median_filter(torch.from_numpy(values), width).numpy()
    assert np.array_equal(filtered, plain_filter(values, width))


@pytest.mark.parametrize(("frames", "changed"), [(1, False), (3, False), (4, True)])
def test_median_filter_needs_more_frames_than_half_a_window(frames: int, changed: bool) -> None:
    values = torch.tensor([[9.0, 0.0, 5.0, 1.0][:frames]])
    assert torch.equal(median_filter(values, 7), values) != changed


@pytest.mark.parametrize("width", [0, -1, 2, 4])
def test_median_filter_width_must_be_odd(width: int) -> None:
    with pytest.raises(RequestError, match="odd"):
        median_filter(torch.zeros(1, 9), width)


@pytest.mark.parametrize("shape", [(6, 11), (7, 10), (1, 5), (5, 1), (2, 2), (12, 40)])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("level", [0.5, 2.0])
def test_contrast_is_its_definition(shape: tuple[int, int], width: int, level: float) -> None:
    """A low level keeps most values, so that column medians are not all zero."""
    attention = np.random.default_rng(3).random((2, 3, *shape)).astype(np.float32) * 4
    expected = plain_contrast(np.stack([attention[1, 2], attention[0, 0]]), level, width)
    contrast = contrast_map(attention, {1: [2], 0: [0]}, level, width)
    assert contrast.dtype == np.float64
    np.testing.assert_allclose(contrast, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 8), (7, 9), (2, 2), (1, 4), (5, 1)])
@pytest.mark.parametrize("zeros", [0.2, 0.5, 0.8])
def test_medians_with_ties(shape: tuple[int, int], zeros: float) -> None:
    """Quarters, of which both middles are often equal, and often not."""
    generator = np.random.default_rng(8)
    for _ in range(30):
        values = generator.integers(1, 4, shape) / 4 * (generator.random(shape) > zeros)
        tensor = torch.from_numpy(values.astype(np.float32))
        rows = np.quantile(values, 0.5, axis=1, keepdims=True)
        columns = np.quantile(values, 0.5, axis=0, keepdims=True)
        assert np.array_equal(_row_median(tensor).numpy(), rows)
        assert np.array_equal(_column_median(tensor).numpy(), columns)


def test_contrast_with_equal_values_and_even_counts() -> None:
    attention = np.random.default_rng(4).integers(0, 3, (1, 1, 8, 12)).astype(np.float32)
    expected = plain_contrast(attention[0], 0.3, 1)
    np.testing.assert_allclose(contrast_map(attention, {0: [0]}, 0.3), expected, rtol=1e-4)


def test_energy_is_the_stretched_mean_of_heads_that_exist() -> None:
    attention = np.random.default_rng(5).random((2, 3, 4, 6)).astype(np.float32)
    mean = (attention[0, 1] + attention[1, 2]) / 2
    expected = (mean - mean.min()) / (mean.max() - mean.min())
    energy = energy_map(attention, {0: [1, 3], 1: [2], 7: [0], -1: [0]})
    assert energy.dtype == np.float32
    np.testing.assert_allclose(energy, expected, rtol=1e-6)


def test_flat_energy_is_zero() -> None:
    assert not energy_map(np.full((1, 1, 3, 4), 0.25), {0: [0]}).any()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("table", [{0: [0, 1]}, {"0": [0, 1]}])
def test_arrays_tensors_dtypes_and_views_agree(kind: type, table: Any) -> None:
    attention = np.random.default_rng(6).random((1, 2, 5, 8)).astype(kind)
    strided = np.repeat(attention, 2, axis=3)[..., ::2]
    strided.flags.writeable = False
    tensor = torch.from_numpy(attention)
    for call in (energy_map, contrast_map):
        expected = call(attention, table)
        for other in (strided, tensor, tensor.requires_grad_(), attention.tolist()):
            assert np.array_equal(call(other, table), expected)


@pytest.mark.parametrize("call", [energy_map, contrast_map])
def test_the_input_is_left_alone(call: Any) -> None:
    attention = torch.rand(1, 1, 4, 9, generator=torch.Generator().manual_seed(0))
    before = attention.clone()
    call(attention, {0: [0]}, medfilt_width=3)
    assert torch.equal(attention, before)


@pytest.mark.parametrize("call", [energy_map, contrast_map])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(call: Any, bad: float) -> None:
    attention = np.zeros((1, 2, 3, 4), dtype=np.float32)
    attention[0, 1, 2, 3] = bad
    assert np.isfinite(call(attention, {0: [0]})).all()  # the head was not chosen
    with pytest.raises(RequestError, match="NaN or infinity"):
        call(attention, {0: [0, 1]})


@pytest.mark.parametrize("call", [energy_map, contrast_map])
@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (1, 1, 0, 4), (1, 1, 3, 0)])
def test_wrong_shapes_are_named(call: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"\[layers, heads, tokens, frames\].*got \[") as error:
        call(np.zeros(shape), {0: [0]})
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("table", [{}, {2: [0]}, {0: [3]}, {0: []}])
def test_no_head_that_exists(table: Any) -> None:
    with pytest.raises(RequestError, match=r"none of the heads .* of shape \[2, 3, 4, 5\]"):
        energy_map(np.zeros((2, 3, 4, 5)), table)


def test_to_host_keeps_dtypes_that_numpy_has() -> None:
    assert to_host(torch.ones(2, dtype=torch.float16)).dtype == np.float16
    assert to_host(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert to_host(torch.ones(2, requires_grad=True)).tolist() == [1, 1]

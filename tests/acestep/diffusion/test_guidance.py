"""Tests of guidance: against diffusers, and against the formula in double precision."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from acestep.diffusion.guidance import MAX_ANGLE, AngleGuidance, ProjectedGuidance


def engine(library: Any) -> Any:
    """As much of an engine as guidance asks for."""
    return SimpleNamespace(xp=library, precise=lambda array: array)


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(seed))


def test_projected_guidance_equals_diffusers() -> None:
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    guidance, momentum = ProjectedGuidance(engine(torch), 4.0), MomentumBuffer(momentum=-0.75)
    for number in range(3):
        wanted, other = drawn(number), drawn(40 + number)
        made = guidance(drawn(9), wanted, other, 0.5)
        theirs = normalized_guidance(
            wanted, other, 3.0, momentum, 0.0, 2.5, use_original_formulation=True, norm_dim=(1,)
        )
        torch.testing.assert_close(made, theirs, atol=1e-5, rtol=1e-5)


def reference(
    state: numpy.ndarray, wanted: numpy.ndarray, other: numpy.ndarray, time: float, weight: float
) -> numpy.ndarray:
    """Angle-domain guidance frame by frame, in float64."""
    made = numpy.empty_like(state)
    for place in numpy.ndindex(state.shape[:2]):
        x, c, u = (
            state[place],
            state[place] - time * wanted[place],
            state[place] - time * other[place],
        )
        cosine = (c @ u) / (numpy.linalg.norm(c) * numpy.linalg.norm(u))
        angle = math.acos(min(max(cosine, -(1 - 1e-6)), 1 - 1e-6))
        turned = min(max(weight * angle, -MAX_ANGLE), MAX_ANGLE)
        apart = c - u
        across = apart - (apart @ u) / (u @ u + 1e-8) * u
        ratio = math.sin(turned) / math.sin(angle) if math.sin(angle) > 1e-3 else weight
        made[place] = (x - (c * math.cos(turned) + across * ratio)) / time
    return made


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.4, 7.0])
@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 0.0])
@pytest.mark.parametrize("library", [torch, numpy])
def test_angle_guidance_is_the_formula(scale: float, apart: float, library: Any) -> None:
    """Also for answers so alike that their angle is lost in rounding, whatever the library."""
    state, wanted = drawn(1), drawn(2)
    other = wanted + apart * drawn(3)
    weight = max(scale - 1, 0) + 1e-3
    expected = reference(*(t.double().numpy() for t in (state, wanted, other)), 0.7, weight)
    inputs = [t if library is torch else t.numpy() for t in (state, wanted, other)]
    made = AngleGuidance(engine(library), scale)(*inputs, 0.7)
    numpy.testing.assert_allclose(numpy.asarray(made), expected, atol=2e-3 if apart else 1e-5)
    if apart == 1.0:
        numpy.testing.assert_allclose(numpy.asarray(made), expected, atol=2e-5)

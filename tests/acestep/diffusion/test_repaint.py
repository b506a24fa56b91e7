"""Tests of what a repaint keeps: ranges, modes, and the masks that fade into the source."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from acestep.diffusion.repaint import Repaint, fade
from acestep.song.request import Request

SOURCE = torch.ones(2, 6 * 48000)
REQUEST = Request("x", (1,), task="repaint", src_audio=SOURCE, repaint=(2.0, 4.0))


def test_a_fade_is_one_inside_and_falls_linearly_outside() -> None:
    assert fade(10, 4, 6, 3).tolist() == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0]
    )
    assert fade(4, 1, 3, 0).tolist() == [0, 1, 1, 0]
    # A crossfade that the song has no room for is cut.
    assert fade(4, 1, 3, 3).tolist() == pytest.approx([0.75, 1, 1, 0.75])
    assert fade(3, -2, 5, 2).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("mode", "strength", "injections", "latent", "wave"),
    [
        ("conservative", 0.2, 8, 25, 0.05),
        ("aggressive", 0.2, 0, 0, 0.0),
        ("balanced", 0.5, 4, 12, 0.025),
        ("balanced", 0.0, 8, 25, 0.05),
        ("balanced", 1.0, 0, 0, 0.0),
    ],
)
def test_modes_are_three_numbers(
    mode: str, strength: float, injections: int, latent: int, wave: float
) -> None:
    request = dataclasses.replace(REQUEST, repaint_mode=mode, repaint_strength=strength)
    found = Repaint.of(request, 6.0)
    assert found is not None
    assert found.injections(8) == injections
    assert (found.latent_crossfade, found.wave_crossfade) == (latent, pytest.approx(wave))
    own = dataclasses.replace(
        request, repaint_latent_crossfade_frames=7, repaint_wav_crossfade_sec=0.5
    )
    found = Repaint.of(own, 6.0)
    assert found is not None
    assert (found.latent_crossfade, found.wave_crossfade) == (7, 0.5)


def test_a_range_may_leave_the_source() -> None:
    before = Repaint.of(dataclasses.replace(REQUEST, repaint=(-1.5, 2.0)), 6.0)
    assert before is not None
    assert (before.start, before.end, before.before) == (0.0, 3.5, 1.5)
    assert before.length(SOURCE.shape[-1], 48000) == 7.5 * 48000
    extended = before.extended(SOURCE, 48000)
    assert extended.shape == (2, 7.5 * 48000)
    assert not extended[:, :72000].any()
    after = Repaint.of(dataclasses.replace(REQUEST, repaint=(5.0, 8.0)), 6.0)
    assert after is not None
    assert after.length(SOURCE.shape[-1], 48000) == 8 * 48000
    assert after.inside(200, 25) == slice(125, 200)


def test_tasks_without_a_range_keep_nothing() -> None:
    assert Repaint.of(dataclasses.replace(REQUEST, task="cover"), 6.0) is None
    assert Repaint.of(dataclasses.replace(REQUEST, task="lego", repaint=(0, None)), 6.0) is None
    lego = Repaint.of(dataclasses.replace(REQUEST, task="lego"), 6.0)
    assert lego is not None
    assert lego.keeps_source
    whole = Repaint.of(dataclasses.replace(REQUEST, repaint=(0.0, None)), 6.0)
    assert whole is not None
    assert whole.covers(6.0)

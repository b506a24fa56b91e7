"""Tests of the schedule: diffusers' own times, and custom ones."""

from __future__ import annotations

from typing import Any

import pytest

from acestep.diffusion.schedule import Schedule, moved_times
from acestep.song.request import Request


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_schedule_is_diffusers(shift: float, diffusers_pipeline: Any) -> None:
    import torch

    wanted = diffusers_pipeline._get_timestep_schedule(8, shift, "cpu", torch.float32)
    schedule = Schedule.make(8, shift)
    assert schedule.times == tuple(wanted.tolist())
    assert schedule.span(7) == (schedule.times[7], 0.0)
    assert Schedule.make(8, shift, [0.9, 0.2]).times == (0.9, 0.2)


def test_custom_times_end_where_they_say_and_turbo_moves_them() -> None:
    request = Request("x", (1,), steps=8, shift=1.0, timesteps=(0.97, 0.5, 0.0))
    assert Schedule.of(request, is_turbo=False).times == (0.97, 0.5)
    assert Schedule.of(request, is_turbo=True).times == (pytest.approx(21 / 22), 0.5)


def test_moved_times_are_said() -> None:
    request = Request("x", (1,), timesteps=(1.0, 0.7, 0.3))
    assert "1, 0.667, 0.3" in moved_times(request, is_turbo=True)[0]
    assert moved_times(request, is_turbo=False) == []
    exact = Request("x", (1,), timesteps=(1.0, 0.5, 0.0))
    assert moved_times(exact, is_turbo=True) == []

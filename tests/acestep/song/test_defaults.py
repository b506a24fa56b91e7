"""What a checkpoint is run with where nobody says, and what is said beyond its distillation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from acestep.demo import diffusion
from acestep.diffusion.schedule import distilled_times, taught_times
from acestep.errors import RequestError
from acestep.handler import AceStepHandler
from acestep.inference import GenerationConfig, GenerationParams, make_request
from acestep.song.defaults import TABLE, kind_of
from acestep.song.request import Request

OPEN = Request("x", (1,), steps=None, guidance_scale=None, shift=None)


@pytest.mark.parametrize(
    ("name", "is_turbo", "version", "builtin", "kind"),
    [
        ("acestep-v15-turbo", True, "turbo", False, "turbo"),
        ("acestep-v15-xl-turbo-diffusers", True, "", False, "turbo"),
        ("acestep-v15-turbo-shift1", True, "turbo", False, "turbo-shift1"),
        ("acestep-v15-turbo-shift3", True, "", False, "turbo-shift3"),
        ("acestep-v15-turbo-continuous", True, "", False, "turbo"),
        ("acestep-v15-base", False, "base", False, "base"),
        ("acestep-v15-xl-sft", False, "", False, "sft"),
        ("my-own", False, "sft", False, "sft"),
        ("my-own", False, "", False, "base"),
        # `is_turbo` decides, whatever names say.
        ("acestep-v15-base", True, "base", False, "turbo"),
        ("acestep-v15-turbo", False, "turbo", False, "base"),
        ("demo", True, "turbo", True, "demo"),
    ],
)
def test_kinds(name: str, is_turbo: bool, version: str, builtin: bool, kind: str) -> None:
    assert kind_of(name, is_turbo, version, builtin) == kind
    assert kind in TABLE


def test_the_table() -> None:
    """FACTS of the original's page and HTTP API; the built-in one's own training."""
    shown = {kind: (row.steps, row.shift, row.guidance_scale) for kind, row in TABLE.items()}
    assert shown == {
        "demo": (diffusion.STEPS, 1.0, 7.0),
        "turbo": (8, 3.0, 7.0),
        "turbo-shift1": (8, 1.0, 7.0),
        "turbo-shift3": (8, 3.0, 7.0),
        "base": (32, 3.0, 7.0),
        "sft": (50, 3.0, 7.0),
    }


@pytest.mark.parametrize("kind", TABLE)
def test_what_is_not_said_is_the_checkpoints(kind: str) -> None:
    row = TABLE[kind]
    request, notices = OPEN.resolved(row)
    assert (request.steps, request.shift) == (row.steps, row.shift)
    assert request.guidance_scale == row.guidance_scale
    assert notices == []
    said = dataclasses.replace(OPEN, steps=5, shift=1.0, guidance_scale=2.0)
    assert said.resolved(row)[0] == said


@pytest.mark.parametrize(
    ("kind", "asked", "notice"),
    [
        ("turbo", {"steps": 20}, "for 8 steps at shift 1, 2 or 3; running 20 steps as asked"),
        ("turbo", {"shift": 2.5}, "running shift 2.5 as asked"),
        ("turbo", {"steps": 4, "shift": 0.5}, "running 4 steps and shift 0.5 as asked"),
        ("turbo", {"shift": 2.0}, None),
        ("demo", {"shift": 3.0}, "for 8 steps at shift 1; running shift 3 as asked"),
        ("turbo", {"timesteps": (1.0, 0.3), "steps": 20}, None),
        ("base", {"steps": 8, "shift": 1.5, "timesteps": tuple(1 / n for n in range(1, 40))}, None),
    ],
)
def test_beyond_the_distillation(kind: str, asked: dict[str, Any], notice: str | None) -> None:
    _, notices = dataclasses.replace(OPEN, **asked).resolved(TABLE[kind])
    assert len(notices) == (notice is not None)
    assert notice is None or notice in notices[0]


def test_a_distilled_checkpoint_takes_so_many_times() -> None:
    times = tuple(1 / n for n in range(1, 23))
    dataclasses.replace(OPEN, timesteps=times[:20]).resolved(TABLE["turbo"])
    with pytest.raises(RequestError, match="21 timesteps are too many for this checkpoint; give"):
        dataclasses.replace(OPEN, timesteps=times[:21]).resolved(TABLE["turbo"])


def test_a_songs_record_has_the_checkpoints_own(
    handler: AceStepHandler, base_handler: AceStepHandler
) -> None:
    params = GenerationParams.of({"caption": "x", "duration": 0.6, "seed": 1})
    request = make_request(params, GenerationConfig(batch_size=1))
    assert (request.steps, request.shift, request.guidance_scale) == (None, None, None)
    made = handler.generate(request)
    assert (made.request.steps, made.request.shift) == (8, 1.0)
    assert made.warnings == []
    assert handler.defaults is TABLE["demo"]
    assert base_handler.defaults is TABLE["base"]
    with pytest.raises(RequestError, match="no checkpoint is loaded"):
        _ = AceStepHandler().defaults


def test_public_values_of_the_dataclass_stand() -> None:
    request = make_request(GenerationParams(caption="x"), GenerationConfig(batch_size=1))
    assert (request.steps, request.shift, request.guidance_scale) == (8, 1.0, 7.0)


def test_the_times_that_turbo_learned() -> None:
    times = taught_times()
    assert times == tuple(sorted(set(times), reverse=True))
    assert (times[0], times[-1]) == (1.0, 0.125)
    assert len(times) == 20
    assert taught_times(8, (1.0,)) == tuple(n / 8 for n in range(8, 0, -1))


@pytest.mark.parametrize(
    ("asked", "moved"),
    [
        ((1.0, 0.9, 0.75, 0.5, 0.25), (1.0, 0.9, 0.75, 0.5, 0.25)),
        (
            (0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085),
            (21 / 22, 10 / 13, 0.625, 0.5, 0.4, 0.3, 2 / 9, 0.125),
        ),
        ((), ()),
    ],
)
def test_times_move_to_the_nearest(asked: tuple[float, ...], moved: tuple[float, ...]) -> None:
    assert distilled_times(asked) == pytest.approx(moved)

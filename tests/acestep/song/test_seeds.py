"""Seeds that are given stay, those that are not are drawn or counted up, and all differ."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep import inference
from acestep.handler import AceStepHandler
from acestep.inference import GenerationConfig, GenerationParams, make_request
from acestep.lm.planner import PlanRequest
from acestep.lm.sampling import Sampling
from acestep.song import seeds as seeding

SMALL = {"captions": "flute", "audio_duration": 0.6, "inference_steps": 1, "batch_size": 2}


def asked(seed: Any = -1, **config: Any) -> tuple[int, ...]:
    params = GenerationParams(caption="x", seed=seed)
    return make_request(params, GenerationConfig(**config)).seeds


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("seeds", [[-1], [-1, -1], "-1", [-5], None, ""])
def test_seeds_that_are_not_given_are_drawn(seeds: Any, random: bool) -> None:
    """The second song used to have seed 0: counted up from -1."""
    for songs in (2, 5):
        made = asked(seeds=seeds, batch_size=songs, use_random_seed=random)
        assert len(set(made)) == songs
        assert set(made).isdisjoint(range(songs))
        assert made != asked(seeds=seeds, batch_size=songs, use_random_seed=random)


def test_what_is_given_stays() -> None:
    assert asked("7,9", batch_size=2) == (7, 9)
    assert asked("7,9", batch_size=4) == (7, 9, 10, 11)
    assert asked(7, batch_size=3) == (7, 8, 9)
    assert asked(7, seeds="4", batch_size=3, use_random_seed=False) == (4, 5, 6)
    first, second, third = asked(seeds=[4, -1], batch_size=3, use_random_seed=False)
    assert first == 4
    assert len({4, 5, 6, second, third}) == 5


@given(st.lists(st.none() | st.integers(0, 2**40), max_size=6), st.integers(1, 12), st.booleans())
def test_completed(given_seeds: list[int | None], songs: int, counting: bool) -> None:
    made = seeding.completed(given_seeds, songs, counting=counting)
    assert len(made) == songs
    for before, after in zip(given_seeds, made, strict=False):
        assert after >= 0 if before is None else after == before
    drawn = [a for b, a in zip(given_seeds, made, strict=False) if b is None]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn).isdisjoint(seed for seed in given_seeds[:songs] if seed is not None)


def test_drawn_seeds_differ_even_where_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "_BITS", 3)
    for _ in range(20):
        assert set(seeding.completed([None, 5, None, None, 2], 8)) > {2, 5}
        made = seeding.completed([5, None, 2], 8, counting=False)
        assert sorted(made) == list(range(8))


def test_the_same_holds_in_a_record(
    handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACESTEP_DEVICE_MEMORY_GB", "80")
    made = handler.generate_music(**SMALL, seed=-1, use_random_seed=False)  # type: ignore[arg-type]
    seeds = [song["seed"] for song in made["audios"]]
    assert len(set(seeds)) == 2
    assert 0 not in seeds
    assert made["extra_outputs"]["seeds"] == seeds
    text = handler.generate_music(**SMALL, seed="11,12", use_random_seed=False)  # type: ignore[arg-type]
    assert [song["seed"] for song in text["audios"]] == [11, 12]
    config = GenerationConfig(batch_size=2, seeds=[-1], use_random_seed=False)
    params = GenerationParams(caption="flute", duration=0.6, inference_steps=1)
    result = inference.generate_music(handler, None, params, config)
    assert [audio["params"]["seed"] for audio in result.audios] == result.extra_outputs["seeds"]


def test_seeds_of_the_language_model() -> None:
    def completed(seeds: Any, songs: int) -> list[int]:
        asked = PlanRequest("a", "b", "dit", Sampling(), "", True, {}, (), songs, seeds)
        return asked.completed_seeds()

    assert completed(None, 2) == [0, 1]
    assert completed([5], 3) == [5, 6, 7]
    assert completed("5", 1) == [5]
    first, second = completed([-1], 2)
    assert first != second
    assert second > 1


def test_seeds_that_are_counted_up_pass_over_those_given() -> None:
    assert seeding.completed([5, 4], 3) == (5, 4, 6)
    assert seeding.completed([7], 3) == (7, 8, 9)

"""Tests of what is kept for next time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acestep.engines.recent import Recent, rounded_up


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 4))
def test_the_one_unused_longest_makes_way(keys: list[int], most: int) -> None:
    recent: Recent[int, str] = Recent(most)
    made: list[int] = []
    order: list[int] = []
    for key in keys:

        def make(key: int = key) -> str:
            assert len(recent) < most, "room is made before"
            made.append(key)
            return str(key)

        count = len(made)
        assert recent.find(key, make) == str(key)
        assert len(made) - count == (key not in order)
        order = [*(k for k in order if k != key), key][-most:]
        assert list(recent) == order


@given(st.integers(0, 10**6), st.integers(1, 999))
def test_a_multiple_that_holds_as_much(count: int, step: int) -> None:
    room = rounded_up(count, step)
    assert room % step == 0
    assert count <= room < count + step

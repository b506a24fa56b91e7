"""Tests of the turns that the tasks of a device take with its models."""

from __future__ import annotations

import threading

from acestep.server.turns import Turns


def test_who_loads_works_alone() -> None:
    """Loaded: beside another. Not so: after all others, who begin again when it is done."""
    turns, order = Turns(), list[str]()
    inside, waiting = threading.Event(), threading.Event()
    loaded = True

    def load() -> None:
        nonlocal loaded
        waiting.set()
        with turns.working(lambda: False):
            order.append("loads")
            loaded = True

    def use() -> None:
        with turns.working(lambda: loaded):
            order.append("uses")
            inside.set()

    with turns.working(lambda: loaded):
        beside = threading.Thread(target=use)
        beside.start()
        assert inside.wait(10)
        beside.join(10)
        loader = threading.Thread(target=load)
        loader.start()
        assert waiting.wait(10)
        loader.join(0.05)
        assert order == ["uses"], "nobody loads while another works"
        # What is let go meanwhile is waited for too.
        loaded = False
        late = threading.Thread(target=use)
        late.start()
        late.join(0.05)
        assert order == ["uses"]
    for thread in (loader, late):
        thread.join(10)
    assert sorted(order) == ["loads", "uses", "uses"]

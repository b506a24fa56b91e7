"""Tests of the turns that the tasks of a device take with its models."""

from __future__ import annotations

import threading

from acestep.server.turns import Turns


def test_who_loads_works_alone() -> None:
    """Loaded: beside another. Not so: after who works, and before who comes while it waits."""
    turns, order = Turns(), list[str]()
    began, free = threading.Event(), threading.Event()

    def load() -> None:
        with turns.working(lambda: False):
            order.append("loads")
            began.set()
            free.wait(10)

    def use() -> None:
        with turns.working(lambda: True):
            order.append("uses")

    loader, beside, late = (threading.Thread(target=work) for work in (load, use, use))
    with turns.working(lambda: True):
        beside.start()
        beside.join(10)
        loader.start()
        assert not began.wait(0.05), "nobody loads while another works"
        late.start()
        late.join(0.05)
        assert order == ["uses"], "who comes later overtakes nobody"
    assert began.wait(10)
    late.join(0.05)
    assert order == ["uses", "loads"], "nobody works while another loads"
    free.set()
    for thread in (loader, late):
        thread.join(10)
    assert order == ["uses", "loads", "uses"]

"""Tasks on disk: every one ends once, order is fair, nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from acestep.errors import RequestError
from acestep.server import store as states
from acestep.server.options import Limits
from acestep.server.store import FullError, Store, Task

Open = Callable[..., Store]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    made: list[Store] = []

    def open_store(**limits: Any) -> Store:
        for store in made:
            store.close()
        made[:] = [Store(tmp_path / "data", Limits(**limits))]
        return made[0]

    yield open_store
    for store in made:
        store.close()


def accepted(store: Store, client: str = "anna", **more: Any) -> Task:
    return store.add(client, "song", {"prompt": "x"}, **more)[0]


def finished(store: Store, task: Task, content: bytes = b"la") -> str:
    part, name = store.new_result("mp3")
    part.write_bytes(content)
    store.keep(part, name)
    store.succeed(task.id, {"songs": [name]}, [name])
    return name


def state(store: Store, task: Task) -> str:
    found = store.get(task.id)
    assert found is not None
    return found.state


def test_a_task_goes_its_way(opened: Open) -> None:
    store = opened()
    task = accepted(store)
    assert (state(store, task), store.place(task)) == (states.QUEUED, 1)
    taken = store.take()
    assert taken is not None
    assert (taken.id, taken.state, taken.attempts, taken.asked) == (
        task.id, states.RUNNING, 1, {"prompt": "x"},
    )  # fmt: skip
    assert store.take() is None
    name = finished(store, task)
    path = store.result(name)
    assert path is not None
    assert path.read_bytes() == b"la"
    ended = store.get(task.id)
    assert ended is not None
    assert (ended.state, ended.result) == (states.SUCCEEDED, {"songs": [name]})
    assert store.counts() == {
        "queued": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    assert store.usage() == (1, 2)
    assert store.mean_seconds() > 0
    store.fail(task.id, "too late")
    assert state(store, task) == states.SUCCEEDED
    assert store.get("nobody") is None


def test_the_order_is_fair(opened: Open) -> None:
    store = opened()
    greedy = [accepted(store, "greedy").id for _ in range(3)]
    modest = [accepted(store, "modest").id for _ in range(2)]
    order = []
    while task := store.take():
        order.append(task.id)
        store.fail(task.id, "x")
        time.sleep(0.001)
    assert order == [greedy[0], modest[0], greedy[1], modest[1], greedy[2]]


def test_a_full_queue_takes_no_more(opened: Open) -> None:
    store = opened(waiting=2)
    accepted(store)
    assert store.add("b", "song", {})[1] == 2
    with pytest.raises(FullError, match="full"):
        accepted(store)
    store.take()
    accepted(store)


def test_a_death_is_survived_once(opened: Open) -> None:
    store = opened()
    task = accepted(store)
    for _ in range(2):
        taken = store.take()
        assert taken is not None
        store = opened()
    found = store.get(task.id)
    assert found is not None
    assert (found.state, found.error) == (states.FAILED, "the server died twice while making it")
    assert store.take() is None


def test_what_a_death_leaves(opened: Open) -> None:
    store = opened()
    attended, stopped = accepted(store, attended=True), accepted(store)
    waiting = accepted(store)
    upload, orphan = store.new_upload(), store.new_upload()
    for path in (upload, orphan):
        path.write_bytes(b"x")
    with_upload = accepted(store, uploads=[upload.name])
    store.take(), store.take()
    assert store.stop(stopped.id) == states.RUNNING
    part, name = store.new_result("mp3")
    part.write_bytes(b"never noted")
    store.keep(part, name)
    store.new_result("mp3")[0].write_bytes(b"half")
    store = opened()
    assert [state(store, t) for t in (attended, stopped, waiting, with_upload)] == [
        states.FAILED, states.CANCELLED, states.QUEUED, states.QUEUED,
    ]  # fmt: skip
    assert list(store.results.iterdir()) == []
    assert [path.name for path in store.uploads.iterdir()] == [upload.name]
    assert store.result(name) is None
    store.fail(with_upload.id, "x")
    assert list(store.uploads.iterdir()) == []


def test_stopping(opened: Open) -> None:
    store = opened()
    first, second = accepted(store), accepted(store)
    store.take()
    assert store.stop(second.id) == states.CANCELLED
    assert store.stop(first.id) == states.RUNNING
    store.cancelled(first.id)
    assert store.stop(first.id) == states.CANCELLED
    assert store.stop("nobody") is None


def test_put_back(opened: Open) -> None:
    store = opened()
    task = accepted(store)
    for _ in range(4):
        taken = store.take()
        assert taken is not None
        assert taken.attempts == 1
        store.put_back(task.id)
    store = opened()
    assert state(store, task) == states.QUEUED


def test_results_go_by_age_and_size(opened: Open) -> None:
    store = opened(keep_bytes=25, keep_seconds=100.0, keep_records=1000.0)
    tasks, names = [], []
    for _ in range(3):
        tasks.append(accepted(store))
        store.take()
        names.append(finished(store, tasks[-1], b"0123456789"))
        time.sleep(0.002)
    store.prune()
    assert [store.result(name) is not None for name in names] == [False, True, True]
    found = store.get(tasks[0].id)
    assert found is not None
    assert found.state == states.SUCCEEDED
    assert found.removed is not None
    store.prune(time.time() + 200)
    assert store.usage() == (0, 0)
    assert list(store.results.iterdir()) == []
    assert store.get(tasks[2].id) is not None
    store.prune(time.time() + 2000)
    assert store.get(tasks[2].id) is None


@pytest.mark.parametrize(
    "name", ["", "../tasks.db", "tasks.db", "a" * 48, f"{'a' * 48}.mp3", f"{'/' * 48}.mp3", "\x00"]
)
def test_only_results_can_be_named(opened: Open, name: str) -> None:
    assert opened().result(name) is None


def test_one_process_at_a_time(opened: Open, tmp_path: Path) -> None:
    store = opened()
    with pytest.raises(RequestError, match="another server uses"):
        Store(store.folder)
    code = f"from acestep.server.store import Store; import pathlib; Store(pathlib.Path({str(store.folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another server uses" in done.stderr
    store.close()
    reopened = Store(store.folder)
    reopened.close()

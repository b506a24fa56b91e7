"""Many clients of the HTTP service at once: `python -m acestep.bench.server_benchmark`.

Clients ask a service in a process of its own for songs; some cancel, some send broken files,
and the service is killed twice in the middle and started again. At the end every task that was
accepted is looked up: it has one final state, its files are there once, and no file is there
without a task. `--overhead` compares a song over HTTP with one through the Python API instead.
"""

from __future__ import annotations

import argparse
import json
import queue
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from acestep.bench._programs import ServerProcess

CLIENTS, TASKS, KILLS = 32, 300, 2
PATIENCE = 120.0
"""Seconds for which a client waits for an answer, and asks again where its server went away."""

# As often as the clients there are look.
_GLANCE = 1.0
_SONG = {"duration": 1, "inference_steps": 1, "batch_size": 1, "audio_format": "wav"}


@dataclass
class Record:
    """What the clients saw.

    Attributes:
        outcomes: how often each kind of end came.
        accepted: task to the number it was asked under.
        ended: task to the status that its client saw, once it was final.
        problems: what must not happen, a line each.
        cut: requests that a kill interrupted.
        waits: seconds from asking to the song.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    accepted: dict[str, int] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    cut: int = 0
    waits: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def answered(self) -> int:
        """Requests that have their end."""
        return sum(self.outcomes.values())


class Client:
    """One client with an address of its own: takes requests from a pile until it is empty.

    Args:
        number: of the client.
        url: of the service.
        pile: numbers of requests; one that ends in 3 is cancelled, in 7 broken.
        record: where to note what happened.
    """

    def __init__(self, number: int, url: str, pile: queue.Queue[int], record: Record) -> None:
        # uvicorn believes a proxy on this machine who the client is.
        headers = {"x-forwarded-for": f"10.0.0.{number + 1}"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=PATIENCE)
        self.pile, self.record = pile, record

    def run(self) -> None:
        """Work until the pile is empty."""
        with self.http:
            while True:
                try:
                    request = self.pile.get_nowait()
                except queue.Empty:
                    return
                outcome = self._ask(request)
                with self.record.lock:
                    self.record.outcomes[outcome] += 1

    def _ask(self, request: int) -> str:
        began = time.monotonic()
        fields = {**_SONG, "prompt": f"request {request}", "seed": request}
        if request % 10 == 7:
            broken = {"src_audio": ("x.wav", b"RIFF" + bytes(range(256)) * 20)}
            fields["task_type"] = "cover"
            answer = self._send("/release_task", data=fields, files=broken)
            if answer.status_code != 400:
                self._problem(f"request {request}: a broken file got {answer.status_code}")
            return "broken upload refused"
        if request % 10 == 3:
            fields["inference_steps"] = 500
        answer = self._send("/release_task", json=fields)
        while answer.status_code == 429:
            time.sleep(float(answer.headers["retry-after"]))
            answer = self._send("/release_task", json=fields)
        if answer.status_code != 200:
            self._problem(f"request {request}: {answer.status_code} {answer.text[:200]}")
            return "other refusal"
        task = str(answer.json()["data"]["task_id"])
        with self.record.lock:
            self.record.accepted[task] = request
        if request % 10 == 3:
            time.sleep(0.5)
            self._send("/cancel_task", json={"task_id": task})
        return self._await(request, task, began)

    def _await(self, request: int, task: str, began: float) -> str:
        while True:
            answer = self._send("/query_result", json={"task_id_list": [task]})
            (item,) = answer.json()["data"]
            if item["status"] != 0:
                break
            time.sleep(_GLANCE)
        (made,) = json.loads(item["result"])
        if item["status"] == 1:
            sound = self._send(made["file"]).content
            with self.record.lock:
                self.record.waits.append(time.monotonic() - began)
                self.record.ended[task] = "succeeded"
            if made["seed_value"] != str(request) or made["prompt"] != f"request {request}":
                self._problem(f"request {request} got {made['prompt']} of {made['seed_value']}")
            if sound[:4] != b"RIFF" or len(sound) < 192_000:
                self._problem(f"request {request}: its song has {len(sound)} bytes")
            return "song"
        with self.record.lock:
            self.record.ended[task] = "cancelled" if made["error"] == "cancelled" else "failed"
        if made["error"] == "cancelled" and request % 10 == 3:
            return "cancelled"
        if "died twice" not in made["error"]:
            self._problem(f"request {request}: {made['error']}")
        return "failed, and said so"

    def _send(self, path: str, **sent: Any) -> httpx.Response:
        """An answer; asked again while the service is away."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.http.request("POST" if sent else "GET", path, **sent)
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                with self.record.lock:
                    self.record.cut += 1
                time.sleep(0.2)

    def _problem(self, line: str) -> None:
        with self.record.lock:
            self.record.problems.append(line)


def check_folder(folder: Path, record: Record) -> dict[str, Any]:
    """Compare the service's own records with what clients saw; returns figures.

    A request whose answer a kill took away may have been accepted; its task has an end all the
    same, and nobody asked for it.
    """
    base = sqlite3.connect(folder / "tasks.db")
    rows = base.execute("SELECT id, state, created, started, ended, attempts FROM tasks").fetchall()
    files = dict(base.execute("SELECT name, task FROM files").fetchall())
    base.close()
    states = {task: state for task, state, *_ in rows}
    record.problems += [f"{task} was lost" for task in record.accepted if task not in states]
    record.problems += [
        f"{task} is {states.get(task)} and its client saw {seen}"
        for task, seen in record.ended.items()
        if states.get(task) != seen
    ]
    record.problems += [
        f"{task} is still {state}" for task, state in states.items()
        if state in ("queued", "running")
    ]  # fmt: skip
    on_disk = {path.name for path in (folder / "results").iterdir()}
    record.problems += [f"{name} has no record" for name in on_disk - set(files)]
    record.problems += [f"{name} is gone" for name in set(files) - on_disk]
    owners = Counter(files.values())
    record.problems += [f"{task} was made {n} times" for task, n in owners.items() if n != 1]
    record.problems += [
        f"{task} succeeded without a file" for task, state in states.items()
        if state == "succeeded" and task not in owners
    ]  # fmt: skip
    record.problems += [f"upload {p.name} is left" for p in (folder / "uploads").iterdir()]
    begun = [row for row in rows if row[3] is not None]
    return {
        "states": Counter(states.values()),
        "unasked": len(set(states) - set(record.accepted)),
        "again": sum(row[5] > 1 for row in rows),
        "queued": sorted(row[3] - row[2] for row in begun),
        "took": sorted(row[4] - row[3] for row in begun if row[1] == "succeeded"),
    }


def measure(folder: Path, clients: int, tasks: int, kills: int) -> Record:
    """Run the whole, and print the figures."""
    record, pile = Record(), queue.Queue[int]()
    for number in range(tasks):
        pile.put(number)
    with ServerProcess(folder) as server:
        _song(server.url)
        before = server.memory(), server.files()
        everybody = [Client(number, server.url, pile, record) for number in range(clients)]
        threads = [threading.Thread(target=client.run) for client in everybody]
        began, starts, peak = time.monotonic(), [server.started_in], before[0]
        for thread in threads:
            thread.start()
        for kill in range(kills):
            while record.answered < tasks * (kill + 1) // (kills + 1):
                time.sleep(0.05)
            peak = max(peak, server.memory())
            server.kill()
            server.start()
            starts.append(server.started_in)
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        stats = httpx.get(f"{server.url}/v1/stats").json()["data"]
        while stats["jobs"]["queued"] + stats["jobs"]["running"]:
            time.sleep(0.2)
            stats = httpx.get(f"{server.url}/v1/stats").json()["data"]
        after = server.memory(), server.files()
    found = check_folder(folder, record)
    _say(
        f"{clients} clients, {tasks} requests, {kills} kills in {seconds:.0f} s: {dict(record.outcomes)}"
    )
    _say(f"tasks in the end: {dict(found['states'])}; begun again after a kill {found['again']}; "
         f"accepted though a kill took the answer {found['unasked'] - 1}; requests cut off {record.cut}")  # fmt: skip
    _say("| seconds | median | 95 % | longest |\n| --- | --- | --- | --- |")
    for name, times in (("in the queue", found["queued"]), ("at the device", found["took"]),
                        ("from asking to the song", sorted(record.waits))):  # fmt: skip
        _say(f"| {name} | {_at(times, 0.5):.2f} | {_at(times, 0.95):.2f} | {times[-1]:.2f} |")
    _say(f"ready in {', '.join(f'{one:.2f}' for one in starts)} s; memory after one song "
         f"{before[0]:.0f} MiB, at most before a kill {peak:.0f}, at the end {after[0]:.0f}; "
         f"open files {before[1]}, at the end {after[1]}")  # fmt: skip
    _say(f"problems: {record.problems or 'none'}")
    return record


def overhead(folder: Path, songs: int) -> None:
    """Print how much longer a song takes over HTTP than through the Python API."""
    from acestep.handler import AceStepHandler
    from acestep.inference import GenerationConfig, GenerationParams, generate_music
    from acestep.server.app import create_app
    from acestep.server.options import ServerOptions
    from acestep.server.service import Service
    from acestep.server.work import Work

    service = Service(ServerOptions(models=("demo",), devices=("cpu",), data_dir=folder / "data"))
    app = create_app(service.options, service)
    from starlette.testclient import TestClient

    work = service.workers[0].work
    assert isinstance(work, Work)
    handler = work.engines.music("demo", lambda *_, **__: None)
    assert isinstance(handler, AceStepHandler)
    service.start()
    config = GenerationConfig(batch_size=1, audio_format="wav")
    fields = {"caption": "x", "duration": 1, "inference_steps": 1, "vocal_language": "en"}
    said = {"messages": [{"role": "user", "content": "<prompt>x</prompt>"}]}
    direct, over = list[tuple[float, float]](), list[tuple[float, float]]()
    with TestClient(app, base_url="http://127.0.0.1:8001") as client:
        for seed in range(songs + 1):
            began = _clocks()
            params = GenerationParams.of({**fields, "seed": seed})
            made = generate_music(handler, None, params, config, folder / "direct")
            assert made.success, made.error
            direct.append(_since(began))
            began = _clocks()
            # One request that waits: asking again and again would be counted too.
            answer = client.post("/v1/chat/completions", json={**_SONG, **said, "seed": seed})
            assert answer.status_code == 200, answer.text
            over.append(_since(began))
    service.close()
    # On a busy machine the wall clock says nothing; the processor's own still does.
    for number, clock in enumerate(("wall clock", "processor")):
        python, http = ([1000 * one[number] for one in ours[1:]] for ours in (direct, over))
        more = statistics.median(b - a for a, b in zip(python, http, strict=True))
        _say(f"{songs} songs in turn, {clock}: Python API median {statistics.median(python):.1f} ms, "
             f"over HTTP {statistics.median(http):.1f} ms; median of the differences {more:.1f} ms")  # fmt: skip


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(began: tuple[float, float]) -> tuple[float, float]:
    now = _clocks()
    return now[0] - began[0], now[1] - began[1]


def _until_ended(client: Any, task: str) -> None:
    while True:
        answer = client.post("/query_result", json={"task_id_list": [task]}).json()
        if answer["data"][0]["status"]:
            return
        time.sleep(0.01)


def _song(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        task = client.post("/release_task", json={**_SONG, "prompt": "warm-up"}).json()
        _until_ended(client, task["data"]["task_id"])


def _at(times: Sequence[float], share: float) -> float:
    return times[min(int(share * len(times)), len(times) - 1)]


def main() -> int:
    """Run with what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--overhead", type=int, metavar="SONGS", help="measure this instead")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.overhead:
            overhead(Path(folder), chosen.overhead)
            return 0
        record = measure(Path(folder), chosen.clients, chosen.tasks, chosen.kills)
    return 1 if record.problems else 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())

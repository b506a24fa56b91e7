"""Many visitors at once: `python -m acestep.bench.load_benchmark`.

Clients make songs against a page in a process of its own; some cancel, some send broken
files, and the server is killed once in the middle and started again. What comes back is
checked against what was asked for, and what is left behind is counted.
"""

from __future__ import annotations

import argparse
import queue
import secrets
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

from acestep.bench._page_caller import Caller, Refused
from acestep.bench._programs import PageProcess

CLIENTS, REQUESTS = 8, 60
PATIENCE = 60.0
"""Seconds for which a client whose server went away asks again."""


@dataclass
class Record:
    """What the clients saw.

    Attributes:
        outcomes: how often each kind of answer came.
        problems: what must not happen, a line each.
        kept: client to the ids of the songs that it was given.
        cut: how many requests the kill interrupted; each was asked again.
        waits: seconds from asking to the song.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    kept: dict[int, set[str]] = field(default_factory=dict)
    cut: int = 0
    waits: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def answered(self) -> int:
        """Requests that have their answer."""
        return sum(self.outcomes.values())


class Client:
    """One visitor: takes requests from a common pile until it is empty.

    Args:
        number: of the client; its prompts name it.
        url: of the page.
        pile: numbers of requests.
        record: where to note what happened.
    """

    def __init__(self, number: int, url: str, pile: queue.Queue[int], record: Record) -> None:
        self.number, self.url, self.pile, self.record = number, url, pile, record
        self.cookie = {"cookie": f"acestep_visitor=load-{number}-{secrets.token_hex(8)}"}
        self.record.kept[number] = set()

    def run(self) -> None:
        """Work until the pile is empty."""
        while True:
            try:
                request = self.pile.get_nowait()
            except queue.Empty:
                return
            deadline = time.monotonic() + PATIENCE
            while not self._try(request, deadline):
                time.sleep(0.3)

    def connect(self) -> Caller:
        """A connection with this visitor's name."""
        return Caller(self.url, self.cookie, timeout=PATIENCE)

    def _try(self, request: int, deadline: float) -> bool:
        """Make one request; False if the server went away meanwhile."""
        caller = None
        try:
            caller = self.connect()
            outcome = self._ask(caller, request)
        except Refused as answer:
            outcome = self._refusal(request, str(answer))
        except (httpx.HTTPError, KeyError, ValueError) as error:
            outcome = "" if time.monotonic() < deadline else f"no answer ({type(error).__name__})"
        finally:
            if caller is not None:
                caller.close()
        with self.record.lock:
            if not outcome:
                self.record.cut += caller is not None
                return False
            self.record.outcomes[outcome] += 1
        return True

    def _refusal(self, request: int, text: str) -> str:
        if "without an answer" in text:
            return ""
        if request % 10 == 7 and "not readable as audio" in text:
            return "broken upload refused"
        if request % 10 == 3 and "cancelled" in text:
            return "cancelled"
        with self.record.lock:
            self.record.problems.append(f"request {request}: {text}")
        return "other refusal"

    def _ask(self, caller: Caller, request: int) -> str:
        prompt = f"client {self.number} request {request}"
        wanted: dict[str, Any] = {"prompt": prompt, "seed": request, "duration": 1, "steps": 2}
        if request % 10 == 7:
            broken = caller.upload(b"RIFF" + bytes(range(256)) * 20, "broken.wav")
            caller.call("v1_generate", **wanted, task="cover", source=broken)
            raise Refused("a broken file was taken")
        if request % 10 == 3:
            call = caller.submit("v1_generate", **{**wanted, "duration": 60, "steps": 100})
            time.sleep(1.0)
            caller.call("v1_cancel")
            caller.result("v1_generate", call)
            raise Refused("a song that was cancelled came nevertheless")
        started = time.monotonic()
        songs = caller.call("v1_generate", **wanted)
        with self.record.lock:
            self.record.waits.append(time.monotonic() - started)
            if [(s["title"], s["seed"], round(s["seconds"], 1)) for s in songs] != [
                (prompt, request, 1.0)
            ]:
                self.record.problems.append(f"request {request} got {songs}")
            self.record.kept[self.number] |= {song["id"] for song in songs}
        return "song"


def check_songs(client: Client) -> None:
    """Every song that the client was given is still listed, and no one else's."""
    caller = client.connect()
    listed = {song["id"]: song["title"] for song in caller.call("v1_songs")}
    caller.close()
    lost = client.record.kept[client.number] - set(listed)
    mixed = [t for t in listed.values() if not t.startswith(f"client {client.number} ")]
    client.record.problems += [f"client {client.number} lost {song}" for song in lost]
    client.record.problems += [f"client {client.number} sees '{title}'" for title in mixed]


def measure(folder: Path, clients: int, requests: Sequence[int]) -> Record:
    """Run the whole, and print the figures.

    Args:
        folder: for the page's songs.
        clients: how many at once.
        requests: their numbers; one that ends in 3 is cancelled, in 7 broken.
    """
    record, pile = Record(), queue.Queue[int]()
    for number in requests:
        pile.put(number)
    options = ("--config_path", "demo", "--enable-api", "--init_service")
    with PageProcess(folder, *options) as page:
        Caller(page.url).call("v1_generate", prompt="warm-up", duration=1, steps=2)
        before = page.memory(), page.files()
        everybody = [Client(number, page.url, pile, record) for number in range(clients)]
        threads = [threading.Thread(target=client.run) for client in everybody]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        while record.answered < len(requests) // 2 and any(t.is_alive() for t in threads):
            time.sleep(0.05)
        peak = page.memory()
        page.kill()
        killed_at = record.answered
        page.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - started
        for client in everybody:
            check_songs(client)
        after = page.memory(), page.files()
        work = len(list((folder / "page" / "songs").glob(".work-*")))
    waits = sorted(record.waits)
    _say(f"{clients} clients, {len(requests)} requests in {seconds:.0f} s: {dict(record.outcomes)}")
    _say(f"killed after {killed_at} answers; {record.cut} requests were cut off and asked again")
    _say(f"song: median wait {waits[len(waits) // 2]:.1f} s, longest {waits[-1]:.1f} s")
    _say(f"server memory after one song {before[0]:.0f} MiB, before the kill {peak:.0f} MiB, "
         f"at the end {after[0]:.0f} MiB")  # fmt: skip
    _say(f"open files after one song {before[1]}, at the end {after[1]}; half-made folders {work}")
    _say(f"songs kept {sum(map(len, record.kept.values()))}; problems: {record.problems or 'none'}")
    record.problems += ["half-made folders are left"] if work else []
    return record


def main() -> int:
    """Run with the clients and requests of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(Path(folder), chosen.clients, range(chosen.requests))
    return 1 if record.problems else 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())

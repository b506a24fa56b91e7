"""Times and memory of whole songs, stage by stage, and beside plain diffusers."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from acestep.device import GIB, DevicePolicy
from acestep.errors import GenerationError
from acestep.handler import AceStepHandler
from acestep.llm_inference import LLMHandler
from acestep.song import audio_files
from acestep.song.planning import plan
from acestep.song.request import Request

CAPTION = "warm lo-fi piano, rain, take {}"
LYRICS = "[verse]\nsoft notes in the morning light\n[chorus]\nmusic fills the air tonight"
STEPS = 8
STAGES = ("lm", "text", "conditioning", "steps", "vae", "other", "saving")
"""In the order of a request: planning by the language model comes first, where there is one."""

_takes = itertools.count()


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        side: `acestep`, `diffusers` or `diffusers compiled`.
        seconds: length of a song.
        batch: songs made together.
        first: seconds of the first call, which prepares what later ones use.
        warm: median seconds of later calls.
        spread: fastest and slowest of them.
        peak: GiB, with the weights.
        stages: seconds by stage, from a run that waits for the device after each.
        each_step: seconds of each step of the diffusion, from the same run.
    """

    side: str
    seconds: float
    batch: int
    first: float
    warm: float
    spread: tuple[float, float]
    peak: float
    stages: dict[str, float] = field(default_factory=dict)
    each_step: list[float] = field(default_factory=list)

    @property
    def songs_per_hour(self) -> float:
        """At this length and batch."""
        return 3600 * self.batch / self.warm

    @property
    def total(self) -> float:
        """Seconds of all stages, planning and saving included."""
        return sum(self.stages.values())

    def record(self) -> dict[str, Any]:
        """The row as plain data, rounded."""
        return {
            **_rounded(asdict(self)),
            "total": round(self.total, 4),
            "songs_per_hour": round(self.songs_per_hour, 1),
        }


def compare(
    handler: AceStepHandler,
    seconds: float,
    repeats: int,
    batch: int = 1,
    sides: Sequence[str] = ("acestep", "diffusers"),
    planner: LLMHandler | None = None,
) -> list[Row]:
    """Rows of all sides, whose runs take turns; every run has words of its own.

    The sides share one set of weights, which counts in the peak of each. With a planner the
    stages begin with what it takes to plan such songs; the runs that take turns do without.
    """
    runs = {"acestep": lambda: _ours(handler, seconds, batch)}
    if len(sides) > 1:
        runs |= _theirs(handler, seconds, batch, sides[1:])
    policy = handler.policy
    spent: dict[str, list[float]] = {side: [] for side in sides}
    peaks: dict[str, float] = {}
    for _ in range(repeats + 1):
        for side in sides:
            with peak_memory(policy) as peak:
                spent[side].append(_timed(runs[side], policy))
            peaks[side] = max(peaks.get(side, 0.0), peak())
    rows = []
    for side, (first, *warm) in spent.items():
        stages: dict[str, float] = {}
        steps: list[float] = []
        if side == "acestep":
            planned = {} if planner is None else {"lm": planning(planner, seconds, batch, policy)}
            stages, steps = _stages(handler, seconds, batch)
            stages = planned | stages
        rows.append(
            Row(
                side, seconds, batch, first, statistics.median(warm), (min(warm), max(warm)),
                peaks[side], stages, steps,
            )
        )  # fmt: skip
    return rows


def planning(
    planner: LLMHandler, seconds: float, batch: int, policy: DevicePolicy, repeats: int = 2
) -> float:
    """Seconds that the language model takes for such songs, metadata and audio codes, warm."""

    def run() -> Any:
        return plan(planner, _request(seconds, batch))

    return min(_timed(run, policy) for _ in range(repeats))


@dataclass(frozen=True)
class Planned:
    """Seconds of whole planned songs, from words to files: the first, and the median of others.

    Attributes:
        first, warm: of the whole.
        spread: fastest and slowest of the others.
        lm, music, saving: their parts, medians too.
        peak: GiB, with the weights.
    """

    first: float
    warm: float
    spread: tuple[float, float]
    lm: float
    music: float
    saving: float
    peak: float


def planned(
    handler: AceStepHandler, planner: LLMHandler, seconds: float, batch: int, repeats: int
) -> Planned:
    """Plan songs, make them and save them as FLAC, each time with other words.

    The caption stays as it is: how much random weights would write of it says nothing.
    """
    policy, runs = handler.policy, []
    with tempfile.TemporaryDirectory() as folder, peak_memory(policy) as peak:
        for number in range(repeats + 1):
            marks = [time.perf_counter()]
            request = _request(seconds, batch)
            asked = replace(request.planning, codes=True, caption=False)
            request = plan(planner, replace(request, planning=asked))
            marks.append(time.perf_counter())
            songs = handler.generate(request).songs
            marks.append(time.perf_counter())
            for place, song in enumerate(songs):
                path = Path(folder) / f"{number}-{place}.flac"
                audio_files.write(path, song.audio, song.sample_rate)
            marks.append(time.perf_counter())
            runs.append([after - before for before, after in itertools.pairwise(marks)])
        highest = peak()
    first, *others = [sum(run) for run in runs]
    parts = [statistics.median(part) for part in zip(*runs[1:], strict=True)]
    spread = min(others), max(others)
    lm, music, saving = parts
    return Planned(first, statistics.median(others), spread, lm, music, saving, highest)


def growth(
    handler: AceStepHandler,
    durations: Sequence[float],
    batches: Sequence[int],
    at: float,
    repeats: int = 1,
) -> list[Row]:
    """Cost of longer songs one at a time, and of more songs of `at` seconds together."""
    points = [(seconds, 1) for seconds in durations]
    points += [(at, batch) for batch in batches if (at, batch) not in points]
    return [
        row
        for seconds, batch in points
        for row in compare(handler, seconds, repeats, batch, ("acestep",))
    ]


def _ours(handler: AceStepHandler, seconds: float, batch: int) -> Any:
    return handler.generate(_request(seconds, batch))


def _request(seconds: float, batch: int) -> Request:
    """Songs of words that no earlier run had."""
    caption = CAPTION.format(next(_takes))
    seeds = tuple(range(batch))
    return Request(caption, seeds, LYRICS, seconds, language="en", steps=STEPS, shift=1.0)


def _theirs(
    handler: AceStepHandler, seconds: float, batch: int, sides: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """diffusers' pipeline as its users have it, and with the compilation its docs advise."""
    from diffusers import AceStepPipeline

    assert handler.pipeline is not None
    plain = AceStepPipeline(**handler.pipeline.components)
    plain.set_progress_bar_config(disable=True)

    def run() -> Any:
        return plain(
            prompt=[CAPTION.format(next(_takes))] * batch,
            lyrics=[LYRICS] * batch,
            vocal_language=["en"] * batch,
            audio_duration=seconds,
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            shift=1.0,
            output_type="np",
        )

    def compiled() -> Any:
        # The forward passes of blocks and decoder, which this project's own path never calls.
        modules = [*plain.transformer.layers, plain.vae.decoder]
        for module in modules:
            if id(module) not in kept:
                module.compile(dynamic=True)
                kept[id(module)] = module._compiled_call_impl
            module._compiled_call_impl = kept[id(module)]
        try:
            return run()
        finally:
            for module in modules:
                module._compiled_call_impl = None

    kept: dict[int, Any] = {}
    known = {"diffusers": run, "diffusers compiled": compiled}
    return {side: known[side] for side in sides}


def _timed(run: Callable[[], Any], policy: DevicePolicy) -> float:
    policy.synchronize()
    start = time.perf_counter()
    run()
    policy.synchronize()
    return time.perf_counter() - start


def _stages(
    handler: AceStepHandler, seconds: float, batch: int
) -> tuple[dict[str, float], list[float]]:
    """Seconds of each of `STAGES`, and of each step, in one run that waits in between."""
    maker, policy = handler.maker, handler.policy
    assert maker is not None
    marks: list[float] = []

    def mark() -> float:
        policy.synchronize()
        return time.perf_counter()

    spent = {"text": 0.0, "conditioning": 0.0}
    conditions = maker.conditioner
    encode = conditions.encoded

    def timed(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            start = mark()
            made = function(*inputs)
            spent[stage] += mark() - start
            return made

        return run

    conditions.encoded = timed(encode, "text")  # type: ignore[method-assign]
    maker.conditioner = timed(conditions, "conditioning")  # type: ignore[assignment]
    try:
        start = mark()
        made = handler.generate(
            _request(seconds, batch), lambda fraction, desc: marks.append(mark())
        )
        total = mark() - start
    finally:
        maker.conditioner = conditions
        del conditions.encoded
    with tempfile.TemporaryDirectory() as folder:
        before = time.perf_counter()
        for number, song in enumerate(made.songs):
            audio_files.write(Path(folder) / f"{number}.flac", song.audio, song.sample_rate)
        saving = time.perf_counter() - before
    # Marks: the start, each step, decoding. A step's mark is set when it is done.
    each = [after - before for before, after in itertools.pairwise(marks[1 : STEPS + 1])]
    conditioning = spent["conditioning"] - spent["text"]
    begun = marks[0] + spent["conditioning"]
    stages = {
        "text": spent["text"],
        "conditioning": conditioning,
        "steps": marks[STEPS] - begun,
        "vae": made.times["decoding"],
    }
    stages["other"] = max(total - sum(stages.values()), 0.0)
    stages["saving"] = saving
    return stages, [marks[1] - begun, *each]


@dataclass(frozen=True)
class StartUp:
    """Seconds of a fresh process that makes and saves one song.

    Attributes:
        command: from its start to its end.
        from_disk: from the opening of the weights to the song's file.
    """

    command: float
    from_disk: float


def start_up(checkpoint: Path, device: str, seconds: float, runs: int) -> list[StartUp]:
    """Start the command line so many times; the first run warms the system's file cache.

    Raises:
        GenerationError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "acestep", "generate", CAPTION.format("one")]
        command += ["--model", str(checkpoint), "--device", device, "--duration", str(seconds)]
        command += ["--seed", "1", "--force", "--json", "-o", str(Path(folder) / "song.flac")]
        return _started(command, runs)


def _started(command: Sequence[str], runs: int) -> list[StartUp]:
    measured = []
    for _ in range(runs + 1):
        before = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        spent = time.perf_counter() - before
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise GenerationError(f"a fresh process failed: {said[-1]}")
        (record,) = json.loads(done.stdout)
        measured.append(StartUp(spent, record["seconds_taken"]))
    return measured[1:]


@contextmanager
def peak_memory(policy: DevicePolicy) -> Iterator[Callable[[], float]]:
    """Highest memory in GiB while the context lasts, as a function to call after it.

    On the host the process's resident memory is read every few milliseconds.
    """
    if policy.is_accelerator:
        policy.reset_peak_memory()
        yield policy.peak_memory
        return
    import psutil

    process, done = psutil.Process(), threading.Event()
    highest = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: highest[0] / GIB
    finally:
        done.set()
        watcher.join()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value

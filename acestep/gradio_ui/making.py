"""One song request at the device: what it is made from, its progress, and what is kept of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from acestep.errors import CancelledError, GenerationError
from acestep.gradio_ui import store as songs
from acestep.gradio_ui import uploads
from acestep.gradio_ui.engines import Engines
from acestep.gradio_ui.finishing import finish
from acestep.gradio_ui.jobs import Job
from acestep.gradio_ui.limits import Limits
from acestep.gradio_ui.pace import Course, Pace
from acestep.gradio_ui.song_request import SongRequest
from acestep.gradio_ui.store import StoredSong
from acestep.song.request import SOURCE_TASKS

if TYPE_CHECKING:
    from acestep.inference import GenerationResult

_USUAL_STEPS = 8
# How much longer it takes to time lyrics too.
_LYRICS = 3

Kept = list[tuple[StoredSong, Path]]


@dataclass
class Making:
    """Makes the songs of one request, with the models loaded.

    Args:
        engines: the models.
        limits: of what visitors give.
        pace: tells, and learns, how long stages take.
        folder: for files in the making.
        job: to report to.
    """

    engines: Engines
    limits: Limits
    pace: Pace
    folder: Path
    job: Job

    def songs(self, request: SongRequest, sources: dict[str, Path | None]) -> Kept:
        """The songs, each with the folder of its files.

        Args:
            request: what to make.
            sources: `src_audio` and `reference_audio`, where given.

        Raises:
            AceStepError: they cannot be made; or the job was cancelled.
        """
        self.engines.adapt(request.lora, request.lora_scale)
        sound = self._decoded(sources)
        plans = request.thinking and request.task == "text2music"
        work = self._work(request, sound.get("src_audio"), plans)
        with self._following(work) as course:
            made = self._generated(request, sound, plans, course)
            return self._kept(request, made, course)

    def _decoded(self, sources: dict[str, Path | None]) -> dict[str, Path]:
        sound = {}
        for name, path in sources.items():
            if path is not None:
                self.job.report(0.0, "reading audio")
                sound[name] = uploads.decoded(path, self.folder / f"{name}.wav", self.limits)
        return sound

    def _work(self, request: SongRequest, source: Path | None, plans: bool) -> dict[str, float]:
        """How much there is to do in each stage: seconds of music, but for the pictures at the
        end, which are nearly the same for every song.
        """
        seconds = request.duration
        if source is not None and request.task in SOURCE_TASKS:
            seconds = soundfile.info(source).duration
        music = max(seconds, 1.0) * request.batch
        steps = request.steps or self.engines.dit.defaults.steps
        planning = {"planning": music} if plans else {}
        return {
            **planning,
            "diffusion": music * steps / _USUAL_STEPS,
            "decoding": music,
            "finishing": request.batch * (1 + seconds / 60) * (_LYRICS if request.lyrics else 1),
        }

    @contextmanager
    def _following(self, work: dict[str, float]) -> Iterator[Course]:
        """The job's course; what it took is learnt if it comes to its end."""
        course = self.job.course = self.pace.course(work)
        yield course
        self.pace.learn(course, work)

    def _generated(
        self, request: SongRequest, sound: dict[str, Path], plans: bool, course: Course
    ) -> GenerationResult:
        from acestep.inference import generate_music

        params, config = request.params(**sound)
        planner = self.engines.llm if plans else None
        made = generate_music(
            self.engines.dit, planner, params, config, self.folder, _reporter(self.job, course)
        )
        check_success(made.success, made.error, self.job)
        gc.collect()
        return made

    def _kept(self, request: SongRequest, made: GenerationResult, course: Course) -> Kept:
        asked, count = request.remembered(), len(made.audios)
        kept = []
        for number, audio in enumerate(made.audios):
            self.job.report(course.at("finishing", number / count), "finishing")
            home = self.folder / f"kept-{number}"
            home.mkdir()
            if request.lora:
                audio["params"]["lora"] = {"name": request.lora, "scale": request.lora_scale}
            song = finish(self.engines.dit, made, number, home, Path(audio["path"]))
            song = replace(
                song, id=songs.new_id(), title=request.title, created=time.time(),
                asked={**asked, "seed": song.seed, "batch": 1},
            )  # fmt: skip
            kept.append((song, home))
        self.job.report(course.at("finishing", 1.0), "finishing")
        return kept


def _reporter(job: Job, course: Course) -> Callable[..., None]:
    """Turns the models' own progress, told in stages, into that of the whole job."""
    decoding_from: list[float] = []

    def report(fraction: float, desc: str = "") -> None:
        if desc.startswith("planning"):
            at = course.at("planning", fraction)
        elif desc.startswith("step "):
            done, _, steps = desc.removeprefix("step ").partition("/")
            at = course.at("diffusion", int(done) / int(steps))
        elif desc == "decoding":
            decoding_from.append(fraction)
            low = decoding_from[0]
            at = course.at("decoding", (fraction - low) / max(1 - low, 1e-9))
        else:
            at = course.at("diffusion", 0.0)
        job.report(at, desc)

    return report


def check_success(success: bool, error: str | None, job: Job) -> None:
    """Raise what the Python API told in words.

    Raises:
        CancelledError: the visitor cancelled the job.
        GenerationError: it failed.
    """
    if success:
        return
    if job.cancelled.is_set():
        raise CancelledError("cancelled")
    raise GenerationError(error or "it failed without saying why")

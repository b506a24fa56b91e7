"""The studio: what the page and the API ask for, done in order and kept for the visitor."""

from __future__ import annotations

import gc
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.errors import CancelledError, GenerationError, RequestError
from acestep.gradio_ui import store as songs
from acestep.gradio_ui import uploads
from acestep.gradio_ui.engines import Engines
from acestep.gradio_ui.finishing import finish
from acestep.gradio_ui.jobs import Job, Line
from acestep.gradio_ui.limits import Limits
from acestep.gradio_ui.settings import Choice, PageOptions
from acestep.gradio_ui.song_request import SongRequest, cleaned
from acestep.gradio_ui.store import Store, StoredSong

if TYPE_CHECKING:
    from acestep.inference import GenerationResult, SampleResult

# Shares of a song's progress bar: planning, then diffusion and decoding, then the lyrics.
_PLANNED, _MADE = 0.35, 0.92
_SEED_BITS = 32


@dataclass(frozen=True)
class Visitor:
    """Who asks: the name their songs are kept under, and where they come from."""

    name: str
    address: str


class Studio:
    """Everything behind the page, without the page.

    Args:
        options: of the command line.
        engines: the models.
        folder: for songs, uploads and files in the making.
        limits: of visitors.
    """

    def __init__(
        self,
        options: PageOptions,
        engines: Engines,
        folder: Path,
        limits: Limits | None = None,
    ) -> None:
        self.options, self.engines, self.folder = options, engines, folder
        self.limits = limits or Limits()
        self.choice = options.choice
        self.line = Line(self.limits)
        self.store = Store(folder / "songs", self.limits)
        self.uploads = folder / "uploads"
        self.uploads.mkdir(parents=True, exist_ok=True, mode=0o700)

    def start(self, who: Visitor, choice: Choice, *, planner: bool = False) -> Job:
        """Load a checkpoint, and the language model where asked for.

        Raises:
            RequestError: the service is fixed, the choice cannot be used, or the line is full.
        """
        self._check_free()
        choice.policy()

        def work(job: Job) -> list[str]:
            self.engines.load(choice, job.report)
            self.choice = choice
            if planner:
                self.engines.load_planner(choice, job.report)
            return self.engines.lines()

        return self.line.submit(who.name, who.address, "load", choice.model, work)

    def stop(self, who: Visitor) -> Job:
        """Let the models go, after what is running.

        Raises:
            RequestError: the service is fixed, or the line is full.
        """
        self._check_free()

        def work(job: Job) -> None:
            self.engines.unload()

        return self.line.submit(who.name, who.address, "unload", "", work)

    def make(self, who: Visitor, request: SongRequest) -> Job:
        """Make songs; the job's result is their ids.

        Raises:
            RequestError: a value is wrong, or the line is full.
        """
        request = request.checked(self.limits)
        if request.source_song and self.store.get(who.name, request.source_song) is None:
            raise RequestError("the song to work from is not there any more; choose another")
        for path in (request.source_file, request.reference_file):
            if path:
                uploads.within(path, self.uploads)

        def work(job: Job) -> list[str]:
            return [song.id for song in self._make(who, request, job)]

        return self.line.submit(who.name, who.address, "song", request.title, work)

    def inspire(self, who: Visitor, query: str, instrumental: bool, seed: int = -1) -> Job:
        """Turn a few words into a whole request; the job's result is a `SampleResult`.

        Raises:
            RequestError: there are no words or too many, or the line is full.
        """
        query = cleaned(str(query)).strip()
        if not query:
            raise RequestError("say in a few words what the song is about, then press again")
        most = self.limits.prompt_chars
        if len(query) > most:
            raise RequestError(f"the idea has {len(query)} characters; the most is {most}")

        def ask(job: Job) -> SampleResult:
            from acestep.inference import create_sample

            return create_sample(
                self.engines.llm, query, instrumental, seed=_drawn(seed), progress=job.report
            )

        return self._plan(who, "inspire", query, ask)

    def polish(self, who: Visitor, request: SongRequest) -> Job:
        """Rewrite prompt and lyrics in more detail; the job's result is a `SampleResult`.

        Raises:
            RequestError: there is nothing to rewrite, a value is wrong, or the line is full.
        """
        if not request.prompt.strip() and not request.lyrics.strip():
            raise RequestError("write a prompt or lyrics first; there is nothing to polish")
        request = replace(request, task="text2music").checked(self.limits, prompt_needed=False)

        def ask(job: Job) -> SampleResult:
            from acestep.inference import format_sample

            seed = _drawn(request.seed)
            return format_sample(
                self.engines.llm, request.prompt, request.lyrics, request.metadata(),
                seed=seed, progress=job.report,
            )  # fmt: skip

        return self._plan(who, "polish", request.title, ask)

    def source(self, who: Visitor, file: str | None, song_id: str) -> Path | None:
        """The file of an upload or of a visitor's song, checked; None for neither.

        Raises:
            RequestError: it is not the visitor's to use.
        """
        if song_id:
            song = self.store.get(who.name, song_id)
            path = song and self.store.path(who.name, song_id, song.audio)
            if not path:
                raise RequestError("the song to work from is not there any more; choose another")
            return path
        return uploads.within(file, self.uploads) if file else None

    def clean(self) -> None:
        """Remove songs and uploads that are too old or too much."""
        self.store.prune()
        uploads.clean(self.uploads, self.limits)

    def close(self) -> None:
        """Stop what runs and let the models go."""
        self.line.close()
        self.engines.unload()

    def _plan(self, who: Visitor, kind: str, title: str, ask: Callable[[Job], SampleResult]) -> Job:
        def work(job: Job) -> SampleResult:
            if not self.engines.llm_loaded:
                self.engines.load_planner(self.choice, job.report)
            made = ask(job)
            _check_success(made.success, made.error, job)
            return made

        return self.line.submit(who.name, who.address, kind, title, work)

    def _make(self, who: Visitor, request: SongRequest, job: Job) -> list[StoredSong]:
        engines = self.engines
        if not engines.dit_loaded:
            engines.load(self.choice, job.report)
        if request.thinking and request.task == "text2music" and not engines.llm_loaded:
            engines.load_planner(self.choice, job.report)
        with self.store.work_folder() as folder:
            made = self._generate(who, request, job, folder)
            job.report(_MADE, "finishing")
            asked = request.remembered()
            kept = []
            for number, audio in enumerate(made.audios):
                home = folder / f"kept-{number}"
                home.mkdir()
                song = finish(engines.dit, made, number, home, Path(audio["path"]))
                song = replace(
                    song, id=songs.new_id(), title=request.title, created=time.time(),
                    asked={**asked, "seed": song.seed},
                )  # fmt: skip
                kept.append((song, home))
                job.report(_MADE + (1 - _MADE) * (number + 1) / len(made.audios), "finishing")
            # All songs of a batch appear, or none: a cancelled job leaves nothing behind.
            return [self.store.add(who.name, song, home) for song, home in kept]

    def _generate(
        self, who: Visitor, request: SongRequest, job: Job, folder: Path
    ) -> GenerationResult:
        from acestep.inference import generate_music

        sound = {}
        chosen = {
            "src_audio": self.source(who, request.source_file, request.source_song),
            "reference_audio": self.source(who, request.reference_file, ""),
        }
        for name, path in chosen.items():
            if path is not None:
                job.report(0.0, "reading audio")
                sound[name] = uploads.decoded(path, folder / f"{name}.wav", self.limits)
        params, config = request.params(**sound)
        plans = params.thinking and request.task == "text2music"
        started = _PLANNED if plans else 0.0

        def report(fraction: float, desc: str = "") -> None:
            planning = desc.startswith("planning")
            low, high = (0.0, started) if planning else (started, _MADE)
            job.report(low + (high - low) * fraction, desc)

        made = generate_music(
            self.engines.dit, self.engines.llm if plans else None, params, config, folder, report
        )
        _check_success(made.success, made.error, job)
        gc.collect()
        return made

    def _check_free(self) -> None:
        if self.options.service_mode:
            raise RequestError("this service has a fixed configuration; it cannot be changed here")


def _drawn(seed: int) -> int:
    return seed if seed >= 0 else secrets.randbits(_SEED_BITS)


def _check_success(success: bool, error: str | None, job: Job) -> None:
    if success:
        return
    if job.cancelled.is_set():
        raise CancelledError("cancelled")
    raise GenerationError(error or "it failed without saying why")


def data_folder(options: PageOptions) -> Path:
    """Where songs and uploads are kept (`ACESTEP_PAGE` moves it)."""
    from acestep.checkpoint.folders import cache_dir

    if text := os.environ.get("ACESTEP_PAGE", "").strip():
        return Path(text).expanduser()
    return options.data_dir or cache_dir() / "page"


def prepare(folder: Path) -> None:
    """Settle where gradio keeps uploads and that it calls nobody; before it is imported."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

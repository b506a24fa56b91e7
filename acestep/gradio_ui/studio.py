"""The studio: what the page and the API ask for, done in order and kept for the visitor."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.alignment.lyric_files import LyricLine
from acestep.errors import RequestError
from acestep.gradio_ui import store as songs
from acestep.gradio_ui import uploads
from acestep.gradio_ui.engines import Engines
from acestep.gradio_ui.finishing import NO_HEARING, finish_recording
from acestep.gradio_ui.jobs import Job, Line
from acestep.gradio_ui.limits import Limits
from acestep.gradio_ui.making import Making, check_success
from acestep.gradio_ui.pace import Pace
from acestep.gradio_ui.settings import Choice, PageOptions
from acestep.gradio_ui.song_request import SongRequest, cleaned, title_of
from acestep.gradio_ui.store import Store

if TYPE_CHECKING:
    from acestep.inference import SampleResult

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
        self.line, self.pace = Line(self.limits), Pace()
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
            self.pace.forget()
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

    def make(self, who: Visitor, request: SongRequest, idea: str = "") -> Job:
        """Make songs; the job's result is their ids.

        Args:
            who: asks.
            request: what to make.
            idea: from which a language model made the request, if one did.

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
            return self._make(who, request, job, idea)

        title = title_of(idea) if idea else request.title
        return self.line.submit(who.name, who.address, "song", title, work)

    def create(self, who: Visitor, idea: str, request: SongRequest) -> Job:
        """Make songs of an idea; the job's result is their ids.

        A language model that can write makes words, lyrics and metadata of it first. Where there
        is only the built-in one, the idea itself is the prompt.

        Args:
            who: asks.
            idea: in a few words.
            request: everything else.

        Raises:
            RequestError: there is no idea, a value is wrong, or the line is full.
        """
        idea = self._few_words(idea)
        request = replace(request, prompt=idea, task="text2music").checked(self.limits)

        def work(job: Job) -> list[str]:
            if self.engines.real_planner:
                self._with_planner(job)
            # Which of those that are here was loaded is the service panel's choice.
            writes = self.engines.real_planner
            asked = self._written(idea, request, job) if writes else request
            return self._make(who, asked, job, idea)

        return self.line.submit(who.name, who.address, "song", title_of(idea), work)

    def align(self, who: Visitor, request: SongRequest) -> Job:
        """Time and score the lyrics of a recording; the job's result is the id of its record.

        Raises:
            RequestError: there is no recording or there are no lyrics, or the line is full.
        """
        if not (request.source_file or request.source_song):
            raise RequestError("there is no recording; choose one first")
        if all(
            LyricLine(line, 0, 0).is_tag for line in request.lyrics.splitlines() if line.strip()
        ):
            raise RequestError("there is nothing to time: write the lyrics that are sung")
        if self.engines.abilities(self.choice.model).toy:
            raise RequestError(NO_HEARING)
        words = replace(request, task="text2music").checked(self.limits, prompt_needed=False)
        self.source(who, request.source_file, request.source_song)

        def work(job: Job) -> list[str]:
            return self._align(who, words, job)

        return self.line.submit(who.name, who.address, "align", title_of(request.prompt), work)

    def inspire(self, who: Visitor, query: str, instrumental: bool, seed: int = -1) -> Job:
        """Turn a few words into a whole request; the job's result is a `SampleResult`.

        Raises:
            RequestError: there are no words or too many, or the line is full.
        """
        query = self._few_words(query)

        def ask(job: Job) -> SampleResult:
            from acestep.inference import create_sample

            return create_sample(
                self.engines.llm, query, instrumental, seed=_drawn(seed), progress=job.report
            )

        return self._plan(who, "inspire", query, ask)

    def polish(self, who: Visitor, request: SongRequest) -> Job:
        """Rewrite prompt and lyrics in more detail; the job's result is a `SampleResult`.

        The built-in language model loses words of lyrics; those stay as they are.

        Raises:
            RequestError: there is nothing to rewrite, a value is wrong, or the line is full.
        """
        if not request.prompt.strip():
            raise RequestError("write a prompt first; without one there is nothing to polish")
        request = replace(request, task="text2music").checked(self.limits, prompt_needed=False)

        def ask(job: Job) -> SampleResult:
            from acestep.inference import format_sample

            made = format_sample(
                self.engines.llm, request.prompt, request.lyrics, request.metadata(),
                seed=_drawn(request.seed), progress=job.report,
            )  # fmt: skip
            return replace(made, lyrics=request.lyrics) if self.engines.toy_planner else made

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

    def _few_words(self, text: str) -> str:
        """An idea, known to be one."""
        idea, most = cleaned(str(text)).strip(), self.limits.prompt_chars
        if not idea:
            raise RequestError("say in a few words what the song is about, then press again")
        if len(idea) > most:
            raise RequestError(f"the idea has {len(idea)} characters; the most is {most}")
        return idea

    def _written(self, idea: str, request: SongRequest, job: Job) -> SongRequest:
        """The request that the language model makes of an idea; what is settled stays."""
        from acestep.inference import create_sample

        made = create_sample(
            self.engines.llm, idea, request.instrumental, seed=_drawn(request.seed),
            progress=job.report,
        )  # fmt: skip
        check_success(made.success, made.error, job)
        values = {
            "prompt": made.caption, "lyrics": made.lyrics, "bpm": made.bpm, "key": made.keyscale,
            "time_signature": made.timesignature, "language": made.language,
        }  # fmt: skip
        written = {name: value for name, value in values.items() if value}
        return SongRequest.of({**vars(request), **written}).checked(self.limits)

    def _plan(self, who: Visitor, kind: str, title: str, ask: Callable[[Job], SampleResult]) -> Job:
        def work(job: Job) -> SampleResult:
            self._with_planner(job)
            made = ask(job)
            check_success(made.success, made.error, job)
            return made

        return self.line.submit(who.name, who.address, kind, title, work)

    def _with_planner(self, job: Job) -> None:
        if not self.engines.llm_loaded:
            self.engines.load_planner(self.choice, job.report)

    def _make(self, who: Visitor, request: SongRequest, job: Job, idea: str = "") -> list[str]:
        if not self.engines.dit_loaded:
            self.engines.load(self.choice, job.report)
        if request.thinking and request.task == "text2music":
            self._with_planner(job)
        sources = {
            "src_audio": self.source(who, request.source_file, request.source_song),
            "reference_audio": self.source(who, request.reference_file, ""),
        }
        with self.store.work_folder() as folder:
            making = Making(self.engines, self.limits, self.pace, folder, job)
            kept = making.songs(request, sources)
            if idea:
                kept = [
                    (replace(song, title=title_of(idea), idea=idea), home) for song, home in kept
                ]
            # All songs of a batch appear, or none: a cancelled job leaves nothing behind.
            return [self.store.add(who.name, song, home).id for song, home in kept]

    def _align(self, who: Visitor, request: SongRequest, job: Job) -> list[str]:
        if not self.engines.dit_loaded:
            self.engines.load(self.choice, job.report)
        path = self.source(who, request.source_file, request.source_song)
        assert path is not None, "checked before"
        with self.store.work_folder() as folder:
            job.report(0.0, "reading audio")
            sound = uploads.decoded(path, folder / "source.wav", self.limits)
            job.report(0.0, "timing the lyrics")
            home = folder / "kept"
            home.mkdir()
            song = finish_recording(self.engines.dit, sound, request, home)
            song = replace(
                song, id=songs.new_id(), title=title_of(request.prompt or path.stem),
                created=time.time(), asked=request.remembered(),
            )  # fmt: skip
            job.report(1.0, "finishing")
            return [self.store.add(who.name, song, home).id]

    def _check_free(self) -> None:
        if self.options.service_mode:
            raise RequestError("this service has a fixed configuration; it cannot be changed here")


def _drawn(seed: int) -> int:
    return seed if seed >= 0 else secrets.randbits(_SEED_BITS)


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

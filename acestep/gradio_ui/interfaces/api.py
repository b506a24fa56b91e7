"""The HTTP API, version 1: what gradio's clients may call, each call's key checked.

A client sends its key as the header `X-API-Key` or `Authorization: Bearer`. Calls with a key
share one list of songs; without a key each client session has its own. An error's message is
one sentence.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.errors import RequestError
from acestep.gradio_ui import safety
from acestep.gradio_ui.interfaces.events import visitor
from acestep.gradio_ui.jobs import DONE, Job
from acestep.gradio_ui.song_request import SongRequest
from acestep.gradio_ui.store import StoredSong
from acestep.gradio_ui.studio import Studio, Visitor

VERSION = 1
_GLANCE = 0.1


class Api:
    """The endpoints; each public method is one, named `v1_` and its name.

    Args:
        studio: what does the work.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._secret = secrets.token_bytes(16)

    def add(self) -> None:
        """Declare the endpoints; called inside the page's `gr.Blocks`."""
        calls: tuple[Callable[..., Any], ...] = (
            self.status, self.generate, self.inspire, self.polish, self.songs, self.delete,
            self.cancel,
        )  # fmt: skip
        for call in calls:
            # Calls wait in the line of jobs, which says so when it is full.
            gr.api(call, api_name=f"v{VERSION}_{call.__name__}", concurrency_limit=None)

    def status(self, request: gr.Request) -> dict[str, Any]:
        """What is loaded where, and how long the line is."""
        self._caller(request)
        engines, line = self.studio.engines, self.studio.line
        return {
            "version": VERSION,
            "loaded": engines.lines(),
            "tasks": list(engines.tasks(self.studio.choice.model)),
            "waiting": len(line.active()),
        }

    async def generate(
        self,
        request: gr.Request,
        prompt: str,
        lyrics: str = "",
        instrumental: bool = False,
        language: str = "unknown",
        duration: float = 30.0,
        seed: int = -1,
        batch: int = 1,
        bpm: int = 0,
        key: str = "",
        time_signature: str = "",
        task: str = "text2music",
        source: dict | None = None,  # type: ignore[type-arg]
        source_song: str = "",
        repaint_start: float = 0.0,
        repaint_end: float = 0.0,
        cover_strength: float = 1.0,
        track: str = "",
        reference: dict | None = None,  # type: ignore[type-arg]
        thinking: bool = False,
        steps: int = 0,
        guidance: float = 0.0,
        shift: float = 0.0,
        method: str = "ode",
        audio_format: str = "flac",
        repaint_mode: str = "balanced",
        repaint_strength: float = 0.5,
        repaint_latent_crossfade: int = -1,
        repaint_wav_crossfade: float = -1.0,
        instruction: str = "",
        codes: str = "",
        tracks: str = "",
        adg: bool = False,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        timesteps: str = "",
        rewrite: bool = True,
        fill_in: bool = True,
        name_language: bool = True,
        lm_temperature: float = 0.85,
        lm_guidance: float = 2.0,
        lm_top_k: int = 0,
        lm_top_p: float = 0.9,
        lm_negative_prompt: str = "NO USER INPUT",
        lm_constrained: bool = True,
        bit_depth: int = 0,
        bitrate: int = 0,
        loudness: float = 0.0,
        lora: str = "",
        lora_scale: float = 1.0,
    ) -> list[dict[str, Any]]:
        """Make songs, and wait for them.

        `source` and `reference` are files (`gradio_client.handle_file`), `source_song` is the
        id of a song made earlier; everything else is as on the page, or as `SongRequest` says.
        Steps, guidance and shift of 0 are the checkpoint's own. Each song comes with its id,
        seed, seconds, timed lyrics, score, parameters, warnings and files.
        """
        values = {k: v for k, v in locals().items() if k not in ("self", "request")}
        who = self._caller(request)
        values["source_file"] = _path(values.pop("source"))
        values["reference_file"] = _path(values.pop("reference"))
        job = await self._done(lambda: self.studio.make(who, SongRequest.of(values)))
        kept = (self.studio.store.get(who.name, song_id) for song_id in job.result)
        return [self._told(who, song) for song in kept if song is not None]

    async def inspire(
        self, request: gr.Request, query: str, instrumental: bool = False, seed: int = -1
    ) -> dict[str, Any]:
        """Turn a few words into prompt, lyrics and metadata."""
        who = self._caller(request)
        job = await self._done(lambda: self.studio.inspire(who, query, instrumental, seed))
        return _sample(job.result)

    async def polish(
        self, request: gr.Request, prompt: str, lyrics: str = "", seed: int = -1
    ) -> dict[str, Any]:
        """Rewrite prompt and lyrics in more detail, and add metadata."""
        who = self._caller(request)
        given = {"prompt": prompt, "lyrics": lyrics, "seed": seed}
        job = await self._done(lambda: self.studio.polish(who, SongRequest.of(given)))
        return _sample(job.result)

    def songs(self, request: gr.Request) -> list[dict[str, Any]]:
        """The caller's songs, newest first, with their files."""
        who = self._caller(request)
        return [self._told(who, song) for song in self.studio.store.list(who.name)]

    def delete(self, request: gr.Request, song: str) -> bool:
        """Delete one of the caller's songs; false if there is none of that id."""
        who = self._caller(request)
        deleted = self.studio.store.delete(who.name, str(song))
        shutil.rmtree(self._lent(who, str(song)), ignore_errors=True)
        return deleted

    def cancel(self, request: gr.Request) -> int:
        """Cancel everything of the caller's that waits or runs; returns how many."""
        return len(self.studio.line.cancel(self._caller(request).name))

    def _caller(self, request: gr.Request) -> Visitor:
        """Who calls, with the right key where one is asked for."""
        key = self.studio.options.api_key
        who = visitor(request)
        if key is None:
            return who
        given = safety.api_key(dict(request.headers))
        if not safety.same(given, key):
            problem = "the API key is wrong" if given else "this API asks for a key"
            raise gr.Error(f"{problem}; send it in the header X-API-Key", print_exception=False)
        return Visitor(safety.visitor({}, f"key {key}"), who.address)

    async def _done(self, submit: Callable[[], Job]) -> Job:
        """The job, once it has ended well; a caller who goes away cancels it."""
        try:
            job = submit()
        except RequestError as error:
            raise gr.Error(str(error), print_exception=False) from None
        try:
            while job.active:
                await asyncio.sleep(_GLANCE)
        finally:
            if job.active:
                self.studio.line.cancel(job.owner, job.id)
        if job.state != DONE:
            raise gr.Error(job.error or "cancelled", print_exception=False)
        return job

    def _lent(self, who: Visitor, song_id: str) -> Path:
        """Where a song's files are lent; nobody else can guess it."""
        name = hashlib.sha256(self._secret + f"{who.name} {song_id}".encode()).hexdigest()
        return self.studio.uploads / f"lent-{name[:32]}"

    def _told(self, who: Visitor, song: StoredSong) -> dict[str, Any]:
        """A song as clients get it; its files are lent for as long as uploads last."""
        lent = self._lent(who, song.id)
        lent.mkdir(mode=0o700, exist_ok=True)
        files = {}
        for name in song.files:
            path = self.studio.store.path(who.name, song.id, name)
            if path is not None:
                _link(path, lent / name)
                files[name] = {
                    "path": str(lent / name),
                    "orig_name": name,
                    "meta": {"_type": "gradio.FileData"},
                }
        return {
            "id": song.id,
            "title": song.title,
            "seed": song.seed,
            "seconds": song.seconds,
            "created": song.created,
            "lines": song.lines,
            "score": song.score,
            "warnings": song.warnings,
            "parameters": song.made,
            "audio": files.pop(song.audio, None),
            "files": files,
        }


def _path(file: Any) -> str | None:
    """Where a client's upload lies; whether it may be read is checked later."""
    if file is None:
        return None
    path = file.get("path") if isinstance(file, dict) else file
    if not isinstance(path, str):
        raise gr.Error("that is no uploaded file", print_exception=False)
    return path


def _sample(made: Any) -> dict[str, Any]:
    return {
        "prompt": made.caption,
        "lyrics": made.lyrics,
        "instrumental": made.instrumental,
        "bpm": made.bpm,
        "key": made.keyscale,
        "time_signature": made.timesignature,
        "language": made.language,
        "duration": made.duration,
    }


def _link(path: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    if target.exists():
        return
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)

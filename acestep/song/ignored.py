"""Says what of a request has no effect, so that nobody waits for it."""

from __future__ import annotations

from acestep.song import normalise
from acestep.song.params import GenerationParams
from acestep.song.request import REPAINT_TASKS, SOURCE_TASKS, Request

_API = GenerationParams()


def ignored(params: GenerationParams, request: Request, is_turbo: bool) -> list[str]:
    """A line for each thing that was asked for and changes nothing.

    Args:
        params: as they came.
        request: what was made of them.
        is_turbo: whether guidance is in the checkpoint's weights.
    """
    works_on_audio = request.task in SOURCE_TASKS and request.src_audio is not None
    lines = []

    def say(when: bool, text: str) -> None:
        if when:
            lines.append(text)

    say(
        works_on_audio and normalise.given(params.duration) is not None,
        f"the duration is left out: with {request.task} a song is as long as its source, "
        f"{request.seconds:g} s",
    )
    words = normalise.text("lyrics", params.lyrics).strip()
    say(
        request.lyrics == normalise.INSTRUMENTAL
        and words.lower().strip("[] ") not in ("", "inst", "inst.", "instrumental"),
        "the lyrics are left out: the song is to be instrumental",
    )
    ranged = (params.repainting_start, params.repainting_end) not in ((0.0, -1.0), (0.0, None))
    say(
        request.task not in REPAINT_TASKS and ranged,
        f"the repaint range is left out: the task is {request.task}",
    )
    say(
        request.task not in ("extract", "lego") and bool(request.track_name),
        f"the track is left out: only extract and lego have one, and the task is {request.task}",
    )
    say(
        request.task != "complete" and bool(request.track_classes),
        f"the tracks are left out: only complete takes them, and the task is {request.task}",
    )
    say(
        request.cover_strength != 1.0 and not (works_on_audio or request.has_codes),
        "the cover strength is left out: there is neither source audio nor audio codes",
    )
    fixed = request.timesteps is not None
    for name, value, usual in (
        ("number of steps", request.steps, _API.inference_steps),
        ("shift", request.shift, _API.shift),
    ):
        say(
            fixed and value not in (None, usual),
            f"the {name} is left out: the timesteps that are given say it",
        )
    say(
        is_turbo and request.guidance_scale not in (None, _API.guidance_scale),
        "the guidance scale is left out: this checkpoint has guidance in its weights",
    )
    say(
        is_turbo and (request.use_adg or request.cfg_interval != (0.0, 1.0)),
        "how to guide is left out: this checkpoint has guidance in its weights",
    )
    return lines

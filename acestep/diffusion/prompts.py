"""The texts that the text encoder reads, as ACE-Step 1.5 was trained on them.

Source: the prompts of the original handler (`text` of its reference cases), and diffusers'
`AceStepPipeline`, which writes the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from acestep.song.request import Request

MAX_TEXT_TOKENS, MAX_LYRIC_TOKENS = 256, 2048
"""What the prompt and the lyrics are cut to."""

NOT_GIVEN = "N/A"

_END = "<|endoftext|>"
_INSTRUCTIONS = {
    "text2music": "Fill the audio semantic mask based on the given conditions:",
    "repaint": "Repaint the mask area based on the given conditions:",
    "cover": "Generate audio semantic tokens based on the given conditions:",
    "extract": "Extract the {}track from the audio:",
    "lego": "Generate the {}track based on the audio context:",
    "complete": "Complete the input track{}:",
}


def instruction_of(request: Request, task: str) -> str:
    """What a request tells the model to do: its own instruction, or that of the task.

    Args:
        task: which may differ from the request's: codes make a cover of text-to-music.
    """
    own = (request.instruction or "").strip()
    if own:
        return own if own.endswith(":") else f"{own}:"
    if task in ("extract", "lego"):
        track = f"{request.track_name.upper()} " if request.track_name else ""
        return _INSTRUCTIONS[task].format(track)
    if task == "complete":
        tracks = " | ".join(name.upper() for name in request.track_classes)
        return _INSTRUCTIONS[task].format(f" with {tracks}" if tracks else "")
    return _INSTRUCTIONS[task]


def plainly(request: Request) -> Request:
    """A request as text-to-music asks for it."""
    return dataclasses.replace(request, instruction=None)


def prompt_text(request: Request, task: str, seconds: float) -> str:
    """Instruction, caption and metadata.

    Args:
        task: as for `instruction_of`.
        seconds: what to say of the song's length; whole seconds are said.
    """
    return (
        f"# Instruction\n{instruction_of(request, task)}\n\n"
        f"# Caption\n{request.caption}\n\n"
        f"# Metas\n"
        f"- bpm: {request.bpm or NOT_GIVEN}\n"
        f"- timesignature: {request.time_signature.strip() or NOT_GIVEN}\n"
        f"- keyscale: {request.key.strip() or NOT_GIVEN}\n"
        f"- duration: {int(seconds)} seconds\n{_END}\n"
    )


def lyrics_text(request: Request) -> str:
    """Language and lyrics."""
    return f"# Languages\n{request.language}\n\n# Lyric\n{request.lyrics}{_END}"


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a prompt, cut to what the model takes."""
    return _ids(tokenizer, text, MAX_TEXT_TOKENS)


def lyric_ids(tokenizer: Any, request: Request) -> list[int]:
    """Ids of a request's lyrics, heading and all, cut to what the model takes."""
    return _ids(tokenizer, lyrics_text(request), MAX_LYRIC_TOKENS)


def _ids(tokenizer: Any, text: str, most: int) -> list[int]:
    ids: list[int] = tokenizer(text, truncation=True, max_length=most).input_ids
    return ids

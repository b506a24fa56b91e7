"""Says which words of a request lie beyond what the text encoder reads."""

from __future__ import annotations

from typing import Any

from acestep.diffusion.prompts import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, lyrics_text, prompt_text
from acestep.song.request import Request

_SHOWN = 5


def unheard(tokenizer: Any, request: Request) -> list[str]:
    """A line for a prompt and one for lyrics whose ends the model does not hear.

    Args:
        tokenizer: of the text encoder.
        request: as it is about to be made.
    """
    lines = []
    prompt = prompt_text(request, request.task, request.seconds)
    if (stop := _heard(tokenizer, prompt, MAX_TEXT_TOKENS)) is not None:
        begin = prompt.index(request.caption)
        words = request.caption[max(stop - begin, 0) :]
        # The metadata come last, and so are lost first.
        told = any((request.bpm, request.key.strip(), request.time_signature.strip()))
        lost = [_quoted(words)] if words.strip() else []
        lost += ["bpm, key and time signature"] if told else []
        if lost:
            lines.append(
                f"the prompt is longer than the {MAX_TEXT_TOKENS} tokens that the model reads; not "
                f"heard: {', and '.join(lost)}"
            )
    words = lyrics_text(request)
    if (stop := _heard(tokenizer, words, MAX_LYRIC_TOKENS)) is not None and words[stop:].strip():
        begin = len(words) - len(words.split("# Lyric\n", 1)[1])
        rest = request.lyrics[max(stop - begin, 0) :]
        if rest.strip():
            lines.append(
                f"the lyrics are longer than the {MAX_LYRIC_TOKENS} tokens that the model reads; "
                f"not heard: {_quoted(rest)}"
            )
    return lines


def _heard(tokenizer: Any, text: str, most: int) -> int | None:
    """How many characters of a text the model reads; None for all."""
    ids = tokenizer(text).input_ids
    if len(ids) <= most:
        return None
    return len(tokenizer.decode(ids[:most], skip_special_tokens=False))


def _quoted(text: str) -> str:
    """Where the unheard words begin, and how many they are."""
    words = text.split()
    shown = " ".join(words[:_SHOWN])
    return f"'{shown[:80]}{' …' if len(words) > _SHOWN else ''}' ({len(words)} words)"

"""Timed lyrics as text files: LRC, enhanced (word by word) LRC, SRT and WebVTT.

Plain data in, text out. Sources: the LRC tags `ti`, `length` and `by` and the `<mm:ss.xx>`
word stamps as players read them (https://en.wikipedia.org/wiki/LRC_(file_format)); SRT as
written by SubRip; WebVTT as in https://www.w3.org/TR/webvtt1/.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A subtitle cue must end after it starts, by at least the finest step the formats know.
SHORTEST_CUE = 0.001


@dataclass(frozen=True, slots=True)
class LyricWord:
    """A word of a line, with the space that follows it; times in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class LyricLine:
    """A line of lyrics; times in seconds. The words, if given, joined are the text."""

    text: str
    start: float
    end: float
    words: tuple[LyricWord, ...] = ()

    @property
    def is_tag(self) -> bool:
        """True for a section mark such as `[verse]`, which nobody sings."""
        return re.fullmatch(r"(\s*\[[^\]]*\]\s*)+", self.text) is not None


def clock(seconds: float) -> str:
    """Time as LRC writes it, `mm:ss.xx`; an hour and a half is `90:00.00`."""
    hundredths = int(f"{max(seconds, 0.0):.2f}".replace(".", ""))
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"


def lrc(
    lines: Sequence[LyricLine],
    *,
    title: str = "",
    by: str = "",
    length: float | None = None,
    end_times: bool = False,
    words: bool = False,
    keep_tags: bool = False,
) -> str:
    """An LRC file.

    Args:
        lines: in order of time.
        title: for the `ti` tag; left out if empty.
        by: who made the file, for the `by` tag; left out if empty.
        length: of the song in seconds, for the `length` tag.
        end_times: after a line, an empty one where it ends, unless the next starts there.
        words: enhanced LRC, each word after its own `<mm:ss.xx>`, and the line's end last.
        keep_tags: keep section marks such as `[verse]`; players may take them for LRC tags.

    Returns:
        The text, ending in a newline.
    """
    out = [f"[ti:{_one_line(title)}]"] if title.strip() else []
    if length is not None:
        minutes, seconds = divmod(round(length), 60)
        out.append(f"[length:{minutes:02d}:{seconds:02d}]")
    out += [f"[by:{_one_line(by)}]"] if by.strip() else []
    sung = _sung(lines, keep_tags)
    for index, line in enumerate(sung):
        text = _word_stamps(line) if words and line.words else _one_line(line.text)
        out.append(f"[{clock(line.start)}]{text}")
        last = index + 1 == len(sung)
        if end_times and (last or sung[index + 1].start > line.end):
            out.append(f"[{clock(line.end)}]")
    return _text(out)


def srt(lines: Sequence[LyricLine], *, keep_tags: bool = False) -> str:
    """A SubRip file: numbered cues, `hh:mm:ss,mmm --> hh:mm:ss,mmm`.

    Args:
        lines: in order of time; each cue lasts at least a millisecond.
        keep_tags: keep section marks such as `[verse]`.
    """
    out = []
    for number, line in enumerate(_sung(lines, keep_tags), start=1):
        span = f"{_stamp(line.start, ',')} --> {_stamp(_cue_end(line), ',')}"
        out += [str(number), span, _one_line(line.text).replace("-->", "->"), ""]
    return _text(out[:-1])


def vtt(lines: Sequence[LyricLine], *, words: bool = False, keep_tags: bool = False) -> str:
    """A WebVTT file, with `&`, `<` and `>` escaped.

    Args:
        lines: in order of time; each cue lasts at least a millisecond.
        words: put a timestamp before each word but the first, for karaoke.
        keep_tags: keep section marks such as `[verse]`.
    """
    out = ["WEBVTT", ""]
    for line in _sung(lines, keep_tags):
        out.append(f"{_stamp(line.start)} --> {_stamp(_cue_end(line))}")
        inner = words and line.words
        out += [_karaoke(line) if inner else html.escape(_one_line(line.text), quote=False), ""]
    return _text(out[:-1])


def _sung(lines: Sequence[LyricLine], keep_tags: bool) -> list[LyricLine]:
    return [line for line in lines if keep_tags or not line.is_tag]


def _word_stamps(line: LyricLine) -> str:
    """Each word of a line after its own stamp, and the end of the last word."""
    stamped = "".join(f"<{clock(word.start)}>{word.text}" for word in line.words)
    return f"{stamped}<{clock(line.words[-1].end)}>"


def _karaoke(line: LyricLine) -> str:
    """The words of a cue; stamps must rise strictly and lie within the cue, so some go."""
    text, latest = "", _stamp(line.start)
    for word in line.words:
        stamp = _stamp(word.start)
        if latest < stamp < _stamp(_cue_end(line)):
            text += f"<{stamp}>"
            latest = stamp
        text += html.escape(word.text, quote=False)
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _cue_end(line: LyricLine) -> float:
    return max(line.end, line.start + SHORTEST_CUE)


def _stamp(seconds: float, point: str = ".") -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"

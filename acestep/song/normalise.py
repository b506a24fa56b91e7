"""What people type becomes what a request holds, once, at the door.

Command line, page, APIs, batch files, Python callers, the planner and the block that the
language model reads all pass through here. "Not given" is said by None, an empty or blank text,
`N/A`, `none`, `null`, `auto`, and the API's -1. What cannot be understood is refused in one line.

Where the original hands on the text as it was typed, these are brought into one form, on
purpose, because it is the form that the model learned from (the language model's own block):

- keys: `Am`, `a minor`, `A min` become `A minor`; `c` becomes `C major`. A sign stays as typed
  (`#` or `♯`, `b` or `♭`): the model knows both. `sharp` and `flat` become `#` and `b`.
- time signatures: `4/4` becomes `4`, `6/8` becomes `6`.
- tempos: `120.0` and `120 bpm` become `120`; a fraction is rounded.
- languages: `English`, `EN` and `en-US` become `en`.
- durations are kept to the sample; latent frames are counted from them rounded to 0.1 s (`diffusion.lengths`).
"""

from __future__ import annotations

import math
import numbers
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from acestep.errors import RequestError
from acestep.gpu_config import MAX_DURATION, MIN_DURATION
from acestep.song.languages import code_of
from acestep.song.request import (
    BPM_RANGE,
    LANGUAGES,
    MAX_SEED,
    TIME_SIGNATURES,
    UNKNOWN_LANGUAGE,
    check_range,
)

INSTRUMENTAL = "[Instrumental]"
"""The lyrics of a song without vocals; no lyrics at all is something else."""

_NOT_GIVEN = ("", "n/a", "none", "null", "auto", "-1", "-1.0")
_LONGEST_SHOWN = 40
_LARGEST = 10**15

_KEY = re.compile(
    r"(?P<note>[a-g])[\s_-]*(?P<sign>#|b|♯|♭|sharp|flat)?[\s:_-]*(?P<mode>[a-z]*)\.?", re.IGNORECASE
)
_SIGNS = {"sharp": "#", "flat": "b"}
_MODES = {
    **dict.fromkeys(("", "major", "maj", "dur"), "major"),
    **dict.fromkeys(("minor", "min", "moll"), "minor"),
}
_TIME_SIGNATURE = re.compile(r"(\d{1,2})(?:\.0+)?(?:\s*/\s*(?:1|2|4|8|16|32))?")
_INSTRUMENTAL = re.compile(r"\[\s*inst(?:rumental)?\.?\s*\]", re.IGNORECASE)
_MINUTES = re.compile(r"(\d+):([0-5]?\d(?:\.\d*)?)")
_UNITS = re.compile(
    r"(?:(?P<m>[\d.]+)\s*(?:m|mins?|minutes?))?\s*(?:(?P<s>[\d.]+)\s*(?:s|secs?|seconds?)?)?"
)
_BPM_UNIT = re.compile(r"\s*bpm\Z", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d{1,25}")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def given(value: Any) -> Any:
    """The value, a text without the space around it; None where it says "not given"."""
    if isinstance(value, str):
        value = unicodedata.normalize("NFKC", value).strip()
        return None if value.lower() in _NOT_GIVEN else value
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return None if is_number and value == -1 else value


def shown(value: Any) -> str:
    """What was typed as one short line, to quote it."""
    try:
        text = " ".join(str(value).split())
    except (ValueError, RecursionError):  # such as an int of thousands of digits
        text = type(value).__name__
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def key(value: Any, name: str = "key") -> str:
    """`A minor` for `Am`, `a minor` or `A min`; empty where none is given.

    Raises:
        RequestError: it is not a note and a mode.
    """
    value = given(value)
    if value is None:
        return ""
    found = _KEY.fullmatch(value) if isinstance(value, str) else None
    mode = found["mode"] if found else ""
    # The one letter whose size tells: `M` is major, `m` minor.
    known = {"m": "minor", "M": "major"}.get(mode) or _MODES.get(mode.lower())
    if not found or known is None:
        raise RequestError(
            f"unknown {name} '{shown(value)}'; give a note and a mode, for example 'C major', "
            "'F# minor' or 'Bb major'"
        )
    sign = (found["sign"] or "").lower()
    return f"{found['note'].upper()}{_SIGNS.get(sign, sign)} {known}"


def time_signature(value: Any, name: str = "time signature") -> str:
    """`4` for `4/4`, `4`, 4 or 4.0; empty where none is given.

    Raises:
        RequestError: the model does not know it.
    """
    value = given(value)
    if value is None:
        return ""
    text = "" if isinstance(value, bool) else shown(value)
    found = _TIME_SIGNATURE.fullmatch(text)
    beats = str(int(found[1])) if found else ""
    if beats not in TIME_SIGNATURES:
        raise RequestError(
            f"unknown {name} '{shown(value)}'; choose from {', '.join(TIME_SIGNATURES)}"
        )
    return beats


def language(value: Any, name: str = "language") -> str:
    """The code of a language given by code or name; `unknown` where none is given.

    Raises:
        RequestError: it is none of `request.LANGUAGES`.
    """
    value = given(value)
    if value is None:
        return UNKNOWN_LANGUAGE
    code = code_of(value) if isinstance(value, str) else None
    if code is None:
        raise RequestError(f"unknown {name} '{shown(value)}'; choose from {' '.join(LANGUAGES)}")
    return code


def bpm(value: Any, name: str = "bpm") -> int | None:
    """Beats a minute, rounded to a whole number; None where none are given.

    Raises:
        RequestError: it is not a number, or out of its range.
    """
    value = given(value)
    if value is None:
        return None
    beats = _number(name, _BPM_UNIT.sub("", value) if isinstance(value, str) else value, "120")
    check_range(name, beats, *BPM_RANGE)
    return round(beats)


def duration(value: Any, name: str = "duration") -> float | None:
    """Seconds from a number, `30.5`, `30 s`, `2:30` or `2m 30s`; None where none
    are given.

    Raises:
        RequestError: it is not a length of time, or out of its range.
    """
    value = given(value)
    if value is None:
        return None
    length = seconds(name, value)
    check_range(name, length, MIN_DURATION, MAX_DURATION, "seconds")
    return float(length)


def seconds(name: str, value: Any) -> float:
    """A length of time from what `duration` understands, of any length.

    Raises:
        RequestError: it is not a length of time.
    """
    if isinstance(value, str):
        value = _ascii(value)
        if found := _MINUTES.fullmatch(value):
            return 60 * float(found[1]) + float(found[2])
        found = _UNITS.fullmatch(value.lower())
        if found and (found["m"] or found["s"]):
            minutes, rest = (_number(name, part or 0, "30") for part in found.group("m", "s"))
            return 60 * minutes + rest
    return _number(name, value, "30 or 2:30")


def number(name: str, value: Any) -> float | None:
    """A number from a number or its text; None where none is given by None, blank or `N/A`.

    Raises:
        RequestError: it is not a finite number.
    """
    value = _present(value)
    return None if value is None else _finite(name, _number(name, value, "0.5"))


def whole(name: str, value: Any) -> int | None:
    """The same for a whole number.

    Raises:
        RequestError: it is not a whole number.
    """
    value = _present(value)
    return None if value is None else _whole(name, value)


def flag(name: str, value: Any, default: bool = False) -> bool:
    """Yes or no, from a bool, 0 or 1, or a word for it.

    Raises:
        RequestError: it is neither.
    """
    word = shown(value).lower()
    if value is None or word in ("", "n/a", "none", "null"):
        return default
    if word not in (*_TRUE, *_FALSE):
        raise RequestError(f"{name} '{shown(value)}' is neither yes nor no; give true or false")
    return word in _TRUE


def text(name: str, value: Any) -> str:
    """A text as it is; empty for None.

    Raises:
        RequestError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RequestError(f"the {name} '{shown(value)}' is not text; give plain text")
    return value


def word(name: str, value: Any, default: str) -> str:
    """A word of a list, in small letters; the default where none is given.

    Raises:
        RequestError: it is not text.
    """
    value = _present(value)
    return default if value is None else text(name, value).lower()


def lyrics(value: Any, instrumental: Any = False) -> str:
    """The words to sing; `INSTRUMENTAL` for the flag, for `[Instrumental]` and for `[inst]`.

    Raises:
        RequestError: they are not text.
    """
    words = text("lyrics", value)
    if flag("instrumental", instrumental) or _INSTRUMENTAL.fullmatch(words.strip()):
        return INSTRUMENTAL
    return words


def seeds(value: Any) -> tuple[int | None, ...]:
    """Seeds from a number, `11`, `11,12` or a list; None is one to draw, as a negative one asks.

    Raises:
        RequestError: one of them is not a whole number, or too large.
    """
    value = _plain(value)
    if isinstance(value, str):
        value = _listed(_present(value) or "")
    elif not isinstance(value, Sequence):
        value = [] if value is None else [value]
    found: list[int | None] = []
    for one in value:
        seed = None if given(one) is None else _whole("seed", one)
        if seed is not None and seed >= 0:
            check_range("seed", seed, 0, MAX_SEED)
        found.append(seed if seed is not None and seed >= 0 else None)
    return tuple(found)


def audio_codes(value: Any) -> str | tuple[str, ...]:
    """Codes as text for all songs, or a text for each; empty where none are given.

    Raises:
        RequestError: they are not text, or some songs have codes and some have none.
    """
    if value is None or isinstance(value, str):
        return given(value) or ""
    if not isinstance(value, Sequence):
        raise RequestError(
            f"the audio codes '{shown(value)}' are not text; give <|audio_code_N|>, or a list of "
            "such texts, one a song"
        )
    songs = tuple(given(text("audio codes", one)) or "" for one in value)
    if not any(songs):
        return ""
    if not all(songs):
        raise RequestError(
            f"song {songs.index('') + 1} has no audio codes; give them for every song or for none"
        )
    return songs


def timesteps(value: Any) -> tuple[float, ...] | None:
    """A schedule from a list or comma-separated text, without a 0 at its end; None for none.

    Raises:
        RequestError: one of them is not a number.
    """
    value = _plain(_present(value))
    if isinstance(value, str):
        value = _listed(value)
    if value is None or (isinstance(value, Sequence) and not value):
        return None
    if not isinstance(value, Sequence):
        raise RequestError(
            f"timesteps '{shown(value)}' are not a list; give falling numbers in (0, 1], for "
            "example 1,0.75,0.5,0.25"
        )
    times = tuple(float(_finite("timestep", _number("timestep", one, "0.5"))) for one in value)
    # The original's lists name the end too, which is no step.
    return times[:-1] if times[-1] == 0 else times


def names(name: str, value: Any) -> tuple[str, ...]:
    """Words from a list or comma-separated text; none for None.

    Raises:
        RequestError: one of them is not text.
    """
    value = _present(value)
    if isinstance(value, str):
        value = value.split(",")
    if value is not None and not isinstance(value, Sequence):
        raise RequestError(f"the {name} '{shown(value)}' are not a list of words")
    stripped = (text(name, one).strip() for one in value or ())
    return tuple(one for one in stripped if one)


def _listed(value: str) -> list[str]:
    return [part for part in re.split(r"[,;\s]+", value.strip("[]()")) if part]


def _plain(value: Any) -> Any:
    """Numbers of an array library as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _ascii(value: str) -> str:
    return unicodedata.normalize("NFKC", value).strip()


def _present(value: Any) -> Any:
    """As `given`, for fields where -1 is a number like any other."""
    if not isinstance(value, str):
        return value
    value = _ascii(value)
    return value if value in ("-1", "-1.0") else given(value)


def _number(name: str, value: Any, example: str) -> float:
    """A number, which may be NaN or infinite."""
    problem = RequestError(
        f"{name} '{shown(value)}' is not a number; expected for example {example}"
    )
    if isinstance(value, bool) or not isinstance(value, str | numbers.Real):
        raise problem
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, str) and "_" in value:
        raise problem
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise problem from None


def _finite(name: str, value: float) -> float:
    if not (abs(value) < _LARGEST):
        raise RequestError(f"{name} {shown(value)} is out of range; expected a smaller number")
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    made = _number(name, value, "7")
    if isinstance(made, int):
        return made
    if not math.isfinite(made) or made != int(made):
        raise RequestError(f"{name} '{shown(value)}' is not a whole number; expected for example 7")
    return int(made)

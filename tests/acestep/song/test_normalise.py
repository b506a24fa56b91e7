"""What people type is understood alike at every door, and refused in one line where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.errors import RequestError
from acestep.lm import cot
from acestep.song import normalise
from acestep.song.params import GenerationConfig, GenerationParams, make_request
from acestep.song.request import LANGUAGES, TIME_SIGNATURES

NAN, INF = float("nan"), float("inf")


class _Refused:
    def __repr__(self) -> str:
        return "refused"


REFUSED = _Refused()
NOT_GIVEN = (None, "", "  ", "\t\n", "N/A", "n/a", " N/a ", "none", "auto", -1, -1.0, "-1")

UNDERSTOOD: dict[str, tuple[tuple[Any, Any], ...]] = {
    "key": (
        ("Am", "A minor"), ("a minor", "A minor"), ("A min", "A minor"), ("A MINOR", "A minor"),
        ("A", "A major"), ("c", "C major"), ("C Major", "C major"), ("CM", "C major"),
        ("C maj", "C major"), ("F# min", "F# minor"), ("f#m", "F# minor"), ("F♯ minor", "F♯ minor"),
        ("F sharp minor", "F# minor"), ("Bb", "Bb major"), ("bb major", "Bb major"),
        ("B♭ major", "B♭ major"), ("b", "B major"), ("bm", "B minor"), ("b minor", "B minor"),
        ("bbm", "Bb minor"), ("E flat", "Eb major"), ("e-flat minor", "Eb minor"),
        ("A-minor", "A minor"), ("a_minor", "A minor"), ("D moll", "D minor"), ("Ａｍ", "A minor"),
        ("H major", REFUSED), ("Am7", REFUSED), ("C dorian", REFUSED), ("C major\nrm", REFUSED),
        (7, REFUSED), (True, REFUSED), (NAN, REFUSED), (["Am"], REFUSED), ("#", REFUSED),
    ),
    "time_signature": (
        ("4/4", "4"), ("6/8", "6"), ("3/4", "3"), ("2/2", "2"), (" 4 / 4 ", "4"), ("3", "3"),
        (3, "3"), (4.0, "4"), ("4.0", "4"),
        ("5/4", REFUSED), ("12/8", REFUSED), ("7", REFUSED), (4.5, REFUSED), (True, REFUSED),
        ("waltz", REFUSED), (NAN, REFUSED), (10**400, REFUSED), ("4/5", REFUSED), ([], REFUSED),
    ),
    "bpm": (
        ("120", 120), ("120.0", 120), (120, 120), (119.6, 120), ("120 bpm", 120), ("1.2e2", 120),
        ("quick", REFUSED), (29, REFUSED), ("301", REFUSED), (0, REFUSED), (True, REFUSED),
        (NAN, REFUSED), (INF, REFUSED), ("nan", REFUSED), (10**400, REFUSED), (-(10**5000), REFUSED),
        ("1_2_0", REFUSED), ([120], REFUSED), ("9" * 9000, REFUSED),
    ),
    "duration": (
        ("30.5", 30.5), ("30", 30.0), (6.03, 6.03), (6.97, 6.97), ("2:30", 150.0), ("2:30.26", 150.26),
        ("30s", 30.0), ("30 sec", 30.0), ("2m 30s", 150.0), ("2 min", 120.0), ("0:30", 30.0),
        ("long", REFUSED), (0.3, REFUSED), (601, REFUSED), ("10:01", REFUSED), ("1:99", REFUSED),
        (-5, REFUSED), (True, REFUSED), (NAN, REFUSED), (INF, REFUSED), (10**400, REFUSED),
        ("1.2.3s", REFUSED), ({}, REFUSED),
    ),
    "language": (
        ("English", "en"), ("en", "en"), ("EN", "en"), ("en-US", "en"), ("zh-CN", "zh"),
        ("zh_Hant_TW", "zh"), ("Chinese", "zh"), ("中文", "zh"), ("Mandarin", "zh"),
        ("cantonese", "yue"), ("粤语", "yue"), ("zh-yue", "yue"), ("Deutsch", "de"),
        ("français", "fr"), ("Tiếng Việt", "vi"), ("हिन्दी", "hi"), ("Brazilian Portuguese", "pt"),
        ("Chinese (Simplified)", "zh"), ("no", "no"), ("unknown", "unknown"),
        ("klingon", REFUSED), ("xx", REFUSED), ("no idea", REFUSED), (False, REFUSED),
        (3, REFUSED), (["en"], REFUSED),
    ),
}  # fmt: skip
ABSENT = {"key": "", "time_signature": "", "bpm": None, "duration": None, "language": "unknown"}
FIELD = {
    "key": "keyscale", "time_signature": "timesignature", "bpm": "bpm", "duration": "duration",
    "language": "vocal_language",
}  # fmt: skip
CASES = [(kind, *case) for kind, cases in UNDERSTOOD.items() for case in cases]
CASES += [(kind, value, ABSENT[kind]) for kind in UNDERSTOOD for value in NOT_GIVEN]


def one_line(call: Callable[[], Any]) -> Any:
    """What a call gives; `REFUSED` for a refusal, which is a line."""
    try:
        return call()
    except RequestError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return REFUSED


def named(value: Any) -> str:
    return normalise.shown(value)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 150


@pytest.mark.parametrize(("kind", "value", "expected"), CASES, ids=named)
def test_what_is_typed(kind: str, value: Any, expected: Any) -> None:
    made = one_line(lambda: getattr(normalise, kind)(value))
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(("kind", "value", "expected"), CASES, ids=named)
def test_python_callers_and_the_block_understand_the_same(
    kind: str, value: Any, expected: Any
) -> None:
    field = FIELD[kind]
    params = GenerationParams(caption="x", **{field: value})
    request = one_line(lambda: make_request(params, GenerationConfig(batch_size=1, seeds=[1])))
    assert (request if request is REFUSED else getattr(request, kind)) == expected
    field = field.removeprefix("vocal_")
    known = one_line(lambda: cot.known_fields({field: value}, 600))
    if known is not REFUSED:
        known = known.get(field, ABSENT[kind])
    assert known == expected


@pytest.mark.parametrize("key", cot.KEYS)
def test_the_models_own_words_stand(key: str) -> None:
    assert normalise.key(key) == key


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_code_is_its_own(code: str) -> None:
    assert normalise.language(code) == code == normalise.language(code.upper())
    assert normalise.time_signature(TIME_SIGNATURES[0]) == TIME_SIGNATURES[0]


@pytest.mark.parametrize(
    ("lyrics", "instrumental", "expected"),
    [
        ("[verse]\nla", False, "[verse]\nla"),
        ("[verse]\nla", True, "[Instrumental]"),
        ("", True, "[Instrumental]"),
        ("", "true", "[Instrumental]"),
        ("[Instrumental]", False, "[Instrumental]"),
        (" [inst]\n", False, "[Instrumental]"),
        ("[INSTRUMENTAL]", None, "[Instrumental]"),
        ("", False, ""),
        (None, False, ""),
        ("  spaced\n", False, "  spaced\n"),
        ("[inst]\n[verse]\nla", False, "[inst]\n[verse]\nla"),
        ("instrumental", False, "instrumental"),
        (7, False, REFUSED),
        ("la", "perhaps", REFUSED),
    ],
)
def test_lyrics(lyrics: Any, instrumental: Any, expected: Any) -> None:
    assert one_line(lambda: normalise.lyrics(lyrics, instrumental)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (11, (11,)), ("11", (11,)), ("11,12", (11, 12)), ("11, 12; 13", (11, 12, 13)),
        ([11, "12"], (11, 12)), (torch.tensor([3, 4]), (3, 4)), (11.0, (11,)),
        ("9223372036854775807", (2**63 - 1,)), (-1, (None,)), ("-1", (None,)), ("4,-1", (4, None)),
        ([-7, 5], (None, 5)), (None, ()), ("", ()), ("N/A", ()), ([], ()),
        ("one", REFUSED), (11.5, REFUSED), (True, REFUSED), ([False], REFUSED), (NAN, REFUSED),
        (2**63, REFUSED), (10**5000, REFUSED), ("1e400", REFUSED), ({}, REFUSED), ([[1]], REFUSED),
    ],
    ids=named,
)  # fmt: skip
def test_seeds(value: Any, expected: Any) -> None:
    assert one_line(lambda: normalise.seeds(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1.0, 0.5], (1.0, 0.5)), ("1, 0.5", (1.0, 0.5)), ("[1.0, 0.5]", (1.0, 0.5)),
        ([0.97, 0.76, 0], (0.97, 0.76)), ("0.9,0", (0.9,)), ((1, "0.5", "0.0"), (1.0, 0.5)),
        (torch.tensor([1.0, 0.5]), (1.0, 0.5)), (None, None), ("", None), ("N/A", None), ([], None),
        (0.5, REFUSED), ("a", REFUSED), ([NAN], REFUSED), ([10**400], REFUSED), ([True], REFUSED),
    ],
    ids=named,
)  # fmt: skip
def test_timesteps(value: Any, expected: Any) -> None:
    assert one_line(lambda: normalise.timesteps(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<|audio_code_1|>", "<|audio_code_1|>"), ("", ""), (None, ""), ("N/A", ""),
        (["<|audio_code_1|>", "<|audio_code_2|>"], ("<|audio_code_1|>", "<|audio_code_2|>")),
        (["", " "], ""), ([], ""), (["a", ""], REFUSED), ([1], REFUSED), (5, REFUSED),
    ],
    ids=named,
)  # fmt: skip
def test_audio_codes(value: Any, expected: Any) -> None:
    assert one_line(lambda: normalise.audio_codes(value)) == expected


def test_codes_of_each_song_reach_the_request() -> None:
    def asked(codes: Any, songs: int) -> Any:
        params = GenerationParams(caption="x", audio_codes=codes)
        request = make_request(params, GenerationConfig(batch_size=songs))
        return request.validated(ALL_TASKS)

    one, two = "<|audio_code_1|>", "<|audio_code_2|>"
    assert asked(one, 2).audio_codes == one
    assert asked([one, two], 2).song_codes == (one, two)
    assert asked([one], 2).song_codes == (one, one)
    with pytest.raises(RequestError, match="codes for 2 songs, and 3 to make"):
        asked([one, two], 3)
    with pytest.raises(RequestError, match="hold no"):
        asked([one, "x"], 2)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([10**400, "4/4", "Am", "2:30", "-1", "1,2", "\x00", "é" * 50]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
ANY_FIELD = st.sampled_from(
    sorted(set(GenerationParams.__dataclass_fields__) - {"src_audio", "reference_audio"})
)


@given(
    kind=st.sampled_from([*UNDERSTOOD, "lyrics", "seeds", "timesteps", "audio_codes"]), value=values
)
def test_anything_is_understood_or_refused(kind: str, value: Any) -> None:
    read = getattr(normalise, kind)
    made = one_line(lambda: read(value))
    if made is not REFUSED:
        assert read(made) == made, "what is understood is understood again"


@given(st.dictionaries(ANY_FIELD, values, max_size=3), values)
def test_any_parameters_make_a_request_or_a_line(fields: dict[str, Any], seed: Any) -> None:
    config = GenerationConfig(batch_size=2, seeds=seed)
    params = GenerationParams.of({"caption": "x", **fields})
    one_line(lambda: make_request(params, config).validated(ALL_TASKS))


@given(values, values)
def test_any_batch_makes_seeds_or_a_line(songs: Any, seed: Any) -> None:
    config = GenerationConfig(batch_size=songs)
    request = one_line(lambda: make_request(GenerationParams(caption="x", seed=seed), config))
    if request is not REFUSED:
        assert len(set(request.seeds)) >= 1
        assert all(one >= 0 for one in request.seeds)

"""From what an HTTP client sent to what is to be made: parameters, configuration, and the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.errors import RequestError
from acestep.server.fields import CONFIG, FIELDS, FLAG, NESTED, PARAMS, SERVER, sorted_out, squashed
from acestep.song import normalise
from acestep.song.request import CODED_TASKS, SOURCE_TASKS

if TYPE_CHECKING:
    from acestep.inference import SampleResult
    from acestep.song.params import GenerationConfig, GenerationParams

NO_QUERY = "NO USER INPUT"
"""What the language model is asked where a sample is wanted and no words are given."""

# What a sample or a rewriting adds, under the names of `GenerationParams`.
_METADATA = {
    "bpm": "bpm", "keyscale": "keyscale", "timesignature": "timesignature",
    "duration": "duration", "vocal_language": "language",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One request for songs, as plain data that a file can hold.

    Attributes:
        params, config: fields of `GenerationParams` and `GenerationConfig`; what is not there is
            theirs, or the checkpoint's.
        given: the fields of `params` that the client named itself.
        model: which checkpoint; empty for the first.
        query: a few words to invent the song from; None where it is described.
        rewrite: have prompt and lyrics rewritten first.
        lm_model, lm_backend: which language model; empty for the server's.
        repetition_penalty: of the language model.
        sounds: `src_audio` and `reference_audio` to the files they are read from.
        notices: what was not understood, a line each.
    """

    params: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    model: str = ""
    query: str | None = None
    rewrite: bool = False
    lm_model: str = ""
    lm_backend: str = ""
    repetition_penalty: float = 1.0
    sounds: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def titleless(self) -> bool:
        """Whether there are words to sing and none that say what the music is like."""
        return not self.params.get("caption") and bool(self.params.get("lyrics"))

    def plain(self) -> dict[str, Any]:
        """For a file; `Asked.of` reads it back."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Asked:
        """What `plain` wrote."""
        lists = {name: tuple(plain[name]) for name in ("given", "notices")}
        return cls(**{**plain, **lists})

    def filled(self, made: SampleResult, *, keep_lyrics: bool = False) -> Asked:
        """With a sample's words, and of its metadata what the client left open."""
        params = {**self.params, "caption": made.caption or self.params.get("caption", "")}
        if not keep_lyrics:
            params["lyrics"] = made.lyrics
        for name, theirs in _METADATA.items():
            if name not in self.given and getattr(made, theirs) not in (None, ""):
                params[name] = getattr(made, theirs)
        return replace(self, params=params, query=None, rewrite=False)

    def metadata(self) -> dict[str, Any]:
        """What the client said of the music beside its words, in the language model's names."""
        said = {
            theirs: self.params[ours] for ours, theirs in _METADATA.items() if ours in self.given
        }
        return {name: value for name, value in said.items() if normalise.given(value) is not None}

    def built(self, **sounds: Any) -> tuple[GenerationParams, GenerationConfig]:
        """The Python API's own objects.

        Args:
            sounds: `src_audio` and `reference_audio`, where there are such.
        """
        from acestep.song.params import GenerationConfig, GenerationParams

        return GenerationParams.of({**self.params, **sounds}), GenerationConfig(**self.config)

    def check(self) -> None:
        """See that it can be made by some checkpoint, without reading its sounds.

        Raises:
            RequestError: a value cannot be understood or is out of range, or something lacks.
        """
        from acestep.song.params import words_and_numbers

        invented = self.query is not None or self.titleless
        params, config = self.built()
        if invented:
            params = replace(params, caption=params.caption or "to be invented")
        request = words_and_numbers(params, config)
        request.check_words_and_numbers()
        config.encoding()
        config.target_loudness()
        if request.task not in ALL_TASKS:
            raise RequestError(
                f"unknown task '{normalise.shown(request.task)}'; choose from {', '.join(ALL_TASKS)}"
            )
        coded = request.task in CODED_TASKS and bool(request.audio_codes or request.song_codes)
        if request.task in SOURCE_TASKS and "src_audio" not in self.sounds and not coded:
            raise RequestError(
                f"the task '{request.task}' needs source audio; send a file as src_audio"
            )


def understood(payload: Mapping[str, Any], **defaults: Any) -> Asked:
    """What a payload asks for: JSON or the fields of a form, in any spelling, nested or not.

    Args:
        payload: as it came; files are not among its values.
        defaults: of this endpoint, in the API's names, where it differs from the task API.

    Raises:
        RequestError: a value is of a kind that nobody understands.
    """
    given, notices = flattened(payload)
    where: dict[str, dict[str, Any]] = {PARAMS: {}, CONFIG: {}, SERVER: {}}
    for known in FIELDS:
        value = given.get(known.name, defaults.get(known.name, known.default))
        if value is None:
            continue
        if known.kind == FLAG:
            value = normalise.flag(known.name, value, bool(known.default))
        where[known.where][known.attribute] = value
    params, config, ours = where[PARAMS], where[CONFIG], where[SERVER]
    # As the original: who wants drawn seeds gets them, whatever a form still holds as its seed.
    if config.get("use_random_seed"):
        params["seed"] = -1
    penalty = normalise.number("lm_repetition_penalty", ours["lm_repetition_penalty"])
    return Asked(
        params=params,
        config=config,
        given=tuple(f.attribute for f in FIELDS if f.where == PARAMS and f.name in given),
        model=normalise.text("model", ours["model"]).strip(),
        query=_query(ours, params),
        rewrite=ours["use_format"],
        lm_model=normalise.text("lm_model_path", ours["lm_model_path"]).strip(),
        lm_backend=normalise.word("lm_backend", ours["lm_backend"], ""),
        repetition_penalty=1.0 if penalty is None else _penalty(penalty),
        sounds={
            name: normalise.text(f"{name}_path", ours[f"{name}_path"])
            for name in ("src_audio", "reference_audio")
            if f"{name}_path" in ours
        },
        notices=tuple(notices),
    )


def flattened(payload: Mapping[str, Any], *nests: str) -> tuple[dict[str, Any], list[str]]:
    """What a payload and the objects nested in it give, by the fields' own names.

    Args:
        payload: as it came.
        nests: names of more objects than `NESTED`.

    Returns:
        The values, and a line for what is not known.

    Raises:
        RequestError: a nested object is none.
    """
    inner = {squashed(name) for name in (*NESTED, *nests)}
    outer = {name: value for name, value in payload.items() if squashed(name) not in inner}
    given, unknown = sorted_out(outer)
    for name, value in payload.items():
        if squashed(name) in inner:
            more, _ = sorted_out(_object(name, value))
            given = {**more, **given}
    notices = [f"not known here, and left out: {', '.join(map(normalise.shown, unknown[:20]))}"]
    return given, notices if unknown else []


def _object(name: str, value: Any) -> Mapping[str, Any]:
    """A nested object, which forms send as JSON text."""
    if isinstance(value, str):
        if not value.strip():
            return {}
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None if value.strip() == "null" else value
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} '{normalise.shown(value)}' is no JSON object")
    return value


def _query(ours: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
    query = normalise.text("sample_query", ours["sample_query"]).strip()
    if ours["sample_mode"]:
        return query or normalise.text("prompt", params.get("caption")).strip() or NO_QUERY
    return query or None


def _penalty(value: float) -> float:
    if not 0.1 <= value <= 10:
        raise RequestError(f"lm_repetition_penalty {value:g} is out of range; expected 0.1 to 10")
    return float(value)

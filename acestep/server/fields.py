"""The names under which HTTP clients ask for a song: one table, from which all else follows.

Names and defaults are those of ACE-Step 1.5's HTTP API. Spelling does not matter: `key_scale`,
`keyscale` and `keyScale` are one name. Steps, guidance and shift that nobody gives are the
checkpoint's own (`song.defaults`: 8 steps at shift 3 for turbo, as its users know them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARAMS, CONFIG, SERVER = "params", "config", "server"
"""Where a field goes: `GenerationParams`, `GenerationConfig`, or this service."""

TEXT, NUMBER, WHOLE, FLAG, LIST = "text", "number", "whole number", "flag", "list"
NESTED = ("metas", "metadata", "user_metadata")
"""Objects inside a request whose members count as the request's own, after its own."""

# Null, blank and, for tempo and length, 0: clients send them for "not given".
_ZERO_IS_NOTHING = ("bpm", "duration")


@dataclass(frozen=True)
class Field:
    """One thing that a client can say.

    Attributes:
        name: in ACE-Step's HTTP API.
        where: `PARAMS`, `CONFIG` or `SERVER`.
        attribute: the field's name there.
        kind: what is expected; the normaliser also understands what people type.
        about: a line for the API's page.
        default: where the client says nothing; None leaves it to what is asked.
        aliases: more names.
    """

    name: str
    where: str
    attribute: str
    kind: str
    about: str
    default: Any = None
    aliases: tuple[str, ...] = ()


def _field(
    where: str, kind: str, name: str, about: str, default: Any = None, *aliases: str, to: str = ""
) -> Field:
    return Field(name, where, to or name, kind, about, default, aliases)


def _params(kind: str, name: str, about: str, *rest: Any, to: str = "") -> Field:
    return _field(PARAMS, kind, name, about, *rest, to=to)


FIELDS: tuple[Field, ...] = (
    _params(TEXT, "prompt", "what the music is like", None, "caption", to="caption"),
    _params(TEXT, "lyrics", "words with section tags such as [verse]"),
    _params(FLAG, "instrumental", "no vocals"),
    _params(TEXT, "vocal_language", "of the vocals, a code or a name", "en", "language"),
    _params(WHOLE, "bpm", "beats per minute, 30 to 300"),
    _params(TEXT, "key_scale", "for example C major or Am", None, "key", to="keyscale"),
    _params(TEXT, "time_signature", "2, 3, 4 or 6, or as 4/4", to="timesignature"),
    _params(
        NUMBER, "audio_duration", "seconds; -1 leaves it open", None, "duration", "target_duration",
        to="duration",
    ),
    _params(TEXT, "task_type", "text2music, cover, repaint, extract, lego or complete", None, "task"),
    _params(TEXT, "instruction", "in place of the task's own words to the model"),
    _params(
        TEXT, "audio_code_string", "semantic codes, <|audio_code_N|>", None, "audio_codes",
        to="audio_codes",
    ),
    _params(WHOLE, "inference_steps", "diffusion steps", None, "steps"),
    _params(NUMBER, "guidance_scale", "of the diffusion; turbo checkpoints ignore it"),
    _params(NUMBER, "shift", "of the schedule of times"),
    _params(TEXT, "infer_method", "ode or sde"),
    _params(TEXT, "timesteps", "falling times in (0, 1], with commas between", None, "custom_timesteps"),
    _params(FLAG, "use_adg", "guide by angles"),
    _params(NUMBER, "cfg_interval_start", "the earliest time that is guided; 0 is the song"),
    _params(NUMBER, "cfg_interval_end", "the latest; 1 is noise"),
    _params(TEXT, "seed", "of the first song, or of each (7,8); -1 draws", -1),
    _params(NUMBER, "repainting_start", "seconds"),
    _params(NUMBER, "repainting_end", "seconds; -1 is the end"),
    _params(TEXT, "repaint_mode", "conservative, balanced or aggressive"),
    _params(NUMBER, "repaint_strength", "0 to 1, how freely balanced renews"),
    _params(WHOLE, "repaint_latent_crossfade_frames", "how softly the new part joins, in frames"),
    _params(NUMBER, "repaint_wav_crossfade_sec", "the same of the sound, in seconds"),
    _params(NUMBER, "audio_cover_strength", "share of the steps that follow the source", None, "cover_strength"),
    _params(TEXT, "track_name", "for extract and lego, for example vocals"),
    _params(LIST, "complete_track_classes", "for complete", None, "track_classes"),
    _params(FLAG, "thinking", "have the language model make audio codes first", False),
    _params(NUMBER, "lm_temperature", "of the language model; 0 takes no chances", 0.85),
    _params(NUMBER, "lm_cfg_scale", "its guidance", 2.5),
    _params(WHOLE, "lm_top_k", "tokens it chooses from; 0 for no limit", 0),
    _params(NUMBER, "lm_top_p", "probability that these reach", 0.9),
    _params(TEXT, "lm_negative_prompt", "what it is to avoid", "NO USER INPUT"),
    _params(FLAG, "use_cot_metas", "let it fill in what is left open", True, "cot_metas"),
    _params(FLAG, "use_cot_caption", "let it rewrite the prompt", True, "cot_caption"),
    _params(FLAG, "use_cot_language", "let it name the language", True, "cot_language"),
    _params(
        FLAG, "constrained_decoding", "hold it to the grammar", True, "constrained",
        "use_constrained_decoding", to="use_constrained_decoding",
    ),
    _field(CONFIG, WHOLE, "batch_size", "songs at once", 2),
    _field(CONFIG, FLAG, "allow_lm_batch", "plan the songs of a batch together", False, "parallel_thinking"),
    _field(CONFIG, WHOLE, "lm_batch_chunk_size", "most songs that are planned together", 8),
    _field(CONFIG, FLAG, "use_random_seed", "draw the seeds; said outright, it wins over seed"),
    _field(CONFIG, LIST, "seeds", "of each song, in place of seed"),
    _field(CONFIG, TEXT, "audio_format", "mp3, wav, flac, ogg, opus, m4a or aac", "mp3"),
    _field(CONFIG, WHOLE, "audio_bit_depth", "of flac and wav"),
    _field(CONFIG, WHOLE, "audio_bitrate", "kbit/s of mp3, opus, m4a and aac"),
    _field(CONFIG, NUMBER, "audio_loudness", "LUFS to bring each song to"),
    _field(CONFIG, FLAG, "fit", "shorten songs that are too long for this machine", False),
    _field(SERVER, TEXT, "model", "which checkpoint, see /v1/models", "", "dit_model"),
    _field(SERVER, FLAG, "sample_mode", "invent the song from sample_query", False),
    _field(SERVER, TEXT, "sample_query", "a few words to invent it from", "", "description", "desc"),
    _field(SERVER, FLAG, "use_format", "have prompt and lyrics rewritten first", False, "format"),
    _field(SERVER, TEXT, "lm_model_path", "which language model", "", "lm_model"),
    _field(SERVER, TEXT, "lm_backend", "its engine: pt or vllm", ""),
    _field(SERVER, NUMBER, "lm_repetition_penalty", "above 1 it avoids what it said before", 1.0),
    _field(SERVER, TEXT, "reference_audio_path", "a result, or a file below an allowed folder"),
    _field(SERVER, TEXT, "src_audio_path", "a result, or a file below an allowed folder"),
)  # fmt: skip

UPLOADS = {
    "reference_audio": ("reference_audio", "ref_audio"),
    "src_audio": ("src_audio", "ctx_audio"),
}
"""Files of a multipart request: the parameter, and the names that clients send it under."""

KEY = "ai_token"
"""Where clients that set no header put their key."""

_ELSEWHERE = (KEY, *NESTED, *(name for names in UPLOADS.values() for name in names))


def squashed(name: str) -> str:
    """A name without what its spellings differ in."""
    return name.replace("_", "").replace("-", "").lower()


_BY_NAME = {
    squashed(spelled): (order, field)
    for field in FIELDS
    for order, spelled in enumerate((field.name, *field.aliases))
}
_KNOWN_ELSEWHERE = frozenset(squashed(name) for name in _ELSEWHERE)


def sorted_out(payload: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a flat payload gives, by the fields' own names, and the names that say nothing here.

    Of several names of a field the first that gives something counts, the API's own before its
    aliases.
    """
    ranked: dict[str, tuple[int, Any]] = {}
    unknown = []
    for spelled, value in payload.items():
        order, field = _BY_NAME.get(squashed(spelled), (0, None))
        if field is None:
            if squashed(spelled) not in _KNOWN_ELSEWHERE:
                unknown.append(spelled)
        elif not _says_nothing(field, value) and order < ranked.get(field.name, (99,))[0]:
            ranked[field.name] = (order, value)
    return {name: value for name, (_, value) in ranked.items()}, unknown


def _says_nothing(field: Field, value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return field.attribute in _ZERO_IS_NOTHING and value in (0, "0", "0.0")


def schema() -> dict[str, Any]:
    """The fields as a JSON schema, for the API's page."""
    types: dict[str, dict[str, Any]] = {
        TEXT: {"type": "string"},
        NUMBER: {"type": "number"},
        WHOLE: {"type": "integer"},
        FLAG: {"type": "boolean"},
        LIST: {"type": "array", "items": {"type": "string"}},
    }
    properties: dict[str, Any] = {}
    for field in FIELDS:
        also = f"; also: {', '.join(field.aliases)}" if field.aliases else ""
        told: dict[str, Any] = {**types[field.kind], "description": f"{field.about}{also}"}
        if field.name == "seed":
            told = {"type": ["integer", "string"], "description": told["description"]}
        if field.default is not None:
            told["default"] = field.default
        properties[field.name] = told
    for name in NESTED:
        properties[name] = {"type": "object", "description": "holds any of the other fields"}
    properties[KEY] = {"type": "string", "description": "the key, where no header is sent"}
    return {"type": "object", "properties": properties}

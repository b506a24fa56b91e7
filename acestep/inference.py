"""The Python API: parameters in, songs and files out."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.errors import AceStepError
from acestep.song import loudness, planning, saving
from acestep.song.formats import Encoding, encoding, file_format
from acestep.song.params import GenerationConfig, GenerationParams, make_request
from acestep.song.planning import SampleResult, create_sample, format_sample, understand_music

if TYPE_CHECKING:
    from collections.abc import Iterable

    from acestep.handler import AceStepHandler
    from acestep.llm_inference import LLMHandler
    from acestep.song.generation import Generation, Progress

# LU; less is not heard.
_LOUDNESS_SLACK = 0.1

__all__ = [
    "GenerationConfig",
    "GenerationParams",
    "GenerationResult",
    "SampleResult",
    "create_sample",
    "describe",
    "format_sample",
    "generate_music",
    "make_request",
    "run",
    "save_song",
    "understand_music",
]


@dataclass
class GenerationResult:
    """What came of it.

    Attributes:
        audios: a dict a song: `tensor` `[2, samples]`, `sample_rate`, `seed`, `key` (its
            number), `path` and `params` (where it was saved and how it was made).
        status_message: a line for the user.
        extra_outputs: latents, condition, lyric tokens, times, warnings.
        success: whether there are songs.
        error: what was wrong, or None.
    """

    audios: list[dict[str, Any]] = field(default_factory=list)
    status_message: str = ""
    extra_outputs: dict[str, Any] = field(default_factory=dict)
    success: bool = True
    error: str | None = None


def generate_music(
    dit_handler: AceStepHandler,
    llm_handler: LLMHandler | None,
    params: GenerationParams,
    config: GenerationConfig,
    save_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> GenerationResult:
    """Generate songs and, given a folder, save each with its parameters beside it.

    Args:
        dit_handler: a handler with a checkpoint loaded.
        llm_handler: plans text2music songs when it is loaded and `params.thinking` is on;
            None does without.
        params: what to generate.
        config: how many, from which seeds, in which format.
        save_dir: where to write `song-1.flac`, `song-1.json`, …, counting on from what is
            there; None writes nothing.
        progress: called as `progress(fraction, desc=text)`.

    Returns:
        The songs, or `success=False` with the reason; an error never leaves a partial file.
    """
    try:
        if save_dir is not None:
            how = config.encoding()
        made = run(dit_handler, params, config, progress, llm_handler)
        audios: list[dict[str, Any]] = [
            {"key": number, "tensor": song.audio, "sample_rate": song.sample_rate,
             "seed": song.seed, "path": None, "params": describe(dit_handler, made, number)}
            for number, song in enumerate(made.songs)
        ]  # fmt: skip
        if save_dir is not None:
            for number, audio in enumerate(audios):
                names = saving.numbered(Path(save_dir), how.kind)
                audio["path"] = str(save_song(names, made, number, audio["params"], how))
    except AceStepError as error:
        return GenerationResult(success=False, error=str(error), status_message=str(error))
    from acestep.song.generation import extra_outputs

    status = "; ".join(made.warnings) or f"made {len(audios)} on {dit_handler.device}"
    outputs = extra_outputs(made)
    if made.request.song_codes:
        outputs["lm_metadata"] = planning.metadata_of(made.request)
        outputs["audio_codes"] = list(made.request.song_codes[: len(audios)])
    return GenerationResult(audios, status, outputs)


def run(
    dit_handler: AceStepHandler,
    params: GenerationParams,
    config: GenerationConfig,
    progress: Progress | None = None,
    llm_handler: LLMHandler | None = None,
) -> Generation:
    """What `generate_music` does before saving, for callers that want errors raised.

    Raises:
        RequestError: bad parameters or unreadable files.
        GenerationError: a model's output cannot be used.
        CancelledError: the handler was told to stop.
    """
    loudness.check(config.audio_loudness)
    request = make_request(params, config)
    if llm_handler is not None:
        dit_handler.lm_initialized = llm_handler.llm_initialized
    if llm_handler is None or not planning.plans(llm_handler, params):
        return _as_loud(dit_handler.generate(request, progress), config.audio_loudness)
    request = request.validated(dit_handler.tasks)
    request, warnings = request.limited(dit_handler.gpu_config, True)
    request = planning.plan(llm_handler, request, params, config, progress)
    made = dit_handler.generate(request, progress)
    made = replace(made, warnings=[*warnings, *made.warnings])
    return _as_loud(made, config.audio_loudness)


def _as_loud(made: Generation, target: float | None) -> Generation:
    """The songs brought to a loudness; where peaks forbid it a warning says what they have."""
    if target is None:
        return made
    songs, warnings = [], list(made.warnings)
    for song in made.songs:
        audio = loudness.brought_to(song.audio, target, song.sample_rate)
        reached = round(loudness.measured(audio, song.sample_rate), 2)
        songs.append(replace(song, audio=audio, loudness=(target, reached)))
        if abs(reached - target) > _LOUDNESS_SLACK:
            warnings.append(
                f"the song of seed {song.seed} has {reached:.1f} LUFS, not {target:g}: its peaks "
                "allow no more"
            )
    return replace(made, songs=songs, warnings=warnings)


def describe(handler: AceStepHandler, made: Generation, number: int) -> dict[str, Any]:
    """Everything needed to make a song of a batch again, as plain data."""
    request = replace(made.request, src_audio=None, reference_audio=None)
    record = {k: v for k, v in asdict(request).items() if v not in (None, "", ())}
    for name in ("src_audio", "reference_audio"):
        record.pop(name, None)
    if codes := record.pop("song_codes", ()):
        record["audio_codes"] = codes[number]
        record["planned"] = planning.metadata_of(request)
    song = made.songs[number]
    return {
        **record,
        "seed": song.seed,
        "batch_index": number,
        "seconds": round(song.seconds, 3),
        **(
            {"loudness": dict(zip(("asked", "made"), song.loudness, strict=True))}
            if song.loudness
            else {}
        ),
        "checkpoint": handler.checkpoint.name if handler.checkpoint else None,
        "device": handler.device,
        "dtype": {name: choice.name for name, choice in handler.policy.dtypes.items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def save_song(
    path: Path | Iterable[Path],
    made: Generation,
    number: int,
    record: dict[str, Any],
    how: Encoding | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a song, and its parameters in a JSON file beside it.

    That is of the same name, or, where that is taken, `song.flac.json`.

    Args:
        path: where to, or several places of which the first that is free is taken.
        made: the generation.
        number: which song of it.
        record: what `describe` says of it.
        how: the kind of file; the name decides where it is not given.
        overwrite: whether files that exist are replaced.

    Returns:
        Where the song is.

    Raises:
        TakenError: a file is there, and was not to be replaced.
        RequestError: one of the two cannot be written; neither is left behind new.
    """
    song = made.songs[number]
    if isinstance(path, Path):
        how, path = how or encoding(file_format(path)), [path]
    assert how is not None, "several places need a kind of file"
    return saving.save(path, song.audio, song.sample_rate, record, how, overwrite=overwrite)

"""One task from its request to its files: planning, music, encoding."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from acestep.errors import AceStepError, GenerationError
from acestep.server.asking import Asked
from acestep.server.engines import Engines
from acestep.server.turns import Turns

if TYPE_CHECKING:
    import torch

    from acestep.inference import SampleResult
    from acestep.llm_inference import LLMHandler
    from acestep.lm.options import WritingOptions
    from acestep.song.outcome import Generation

Report = Callable[..., Any]

# Shares of a song's progress: inventing or rewriting it, planning, diffusion and decoding.
_INVENTED, _PLANNED, _MADE = 0.2, 0.35, 0.95
_SEED_BITS = 32


@dataclass
class Work:
    """What tasks are done with: the models of one device, and the folders of the service.

    Attributes:
        workers: how many do their tasks with it, of which the last to end closes it.
    """

    engines: Engines
    store: Shelf
    sounds: Reader
    default_model: Callable[[str], str]
    workers: int = 1
    turns: Turns = field(default_factory=Turns)

    def close(self) -> None:
        """Let the models go."""
        with self.turns.counting():
            self.workers -= 1
            last = self.workers == 0
        if last:
            self.engines.close()

    def song(self, asked: Asked, report: Report) -> tuple[dict[str, Any], list[str]]:
        """Make songs, beside those of another worker where all models are there.

        Args:
            asked: checked.
            report: called as `report(fraction, desc=text)`; it may raise `CancelledError`.

        Returns:
            The result as it is kept, and the names of its files.

        Raises:
            AceStepError: it cannot be made, or it failed; nothing is left behind.
        """
        with self.turns.working(lambda: self._is_loaded(asked)):
            return self._song(asked, report)

    def _song(self, asked: Asked, report: Report) -> tuple[dict[str, Any], list[str]]:
        from acestep.inference import run

        began = time.perf_counter()
        dit = self.engines.music(self.default_model(asked.model), report)
        asked, planner = self._invented(asked, report)
        planned = bool(asked.params.get("thinking")) or self.engines.options.init_llm
        if planned and planner is None:
            planner = self._planner(asked, report)
        sounds = {name: self.sounds.read(Path(path)) for name, path in asked.sounds.items()}
        params, config = asked.built(**sounds)
        writer = _Writer(planner, asked.repetition_penalty) if planned and planner else None

        def within(fraction: float, desc: str = "") -> None:
            low, high = (_INVENTED, _PLANNED) if desc.startswith("planning") else (_PLANNED, _MADE)
            report(low + (high - low) * fraction, desc=desc)

        made = run(dit, params, config, within, cast("LLMHandler | None", writer))
        names = self._kept(asked, dit, made, report)
        result = _told(asked, dit, made, planner, names)
        result["generation_info"] = _times(made, time.perf_counter() - began)
        return result, names

    def sample(self, asked: Asked, report: Report) -> dict[str, Any]:
        """Invent a song, or rewrite one: its words and metadata.

        Raises:
            AceStepError: the language model failed.
        """
        with self.turns.working(lambda: self.engines.has_planner(asked.lm_model, asked.lm_backend)):
            return self._sample(asked, report)

    def _is_loaded(self, asked: Asked) -> bool:
        """Whether the models are there that a song may need."""
        if not self.engines.has_music(self.default_model(asked.model)):
            return False
        return not self._may_plan(asked) or self.engines.has_planner(
            asked.lm_model, asked.lm_backend
        )

    def _may_plan(self, asked: Asked) -> bool:
        invents = asked.query is not None or asked.rewrite or asked.titleless
        return invents or bool(asked.params.get("thinking")) or self.engines.options.init_llm

    def _sample(self, asked: Asked, report: Report) -> dict[str, Any]:
        planner = self._planner(asked, report)
        made = self._described(asked, planner, report)
        return {
            "caption": made.caption,
            "lyrics": made.lyrics,
            "bpm": made.bpm,
            "key_scale": made.keyscale,
            "time_signature": made.timesignature,
            "duration": made.duration,
            "vocal_language": made.language,
            "instrumental": made.instrumental,
        }

    def _invented(self, asked: Asked, report: Report) -> tuple[Asked, LLMHandler | None]:
        """The request with the words that the language model was to give it."""
        words_only = asked.titleless and asked.params.get("task_type", "text2music") == "text2music"
        if asked.query is None and not asked.rewrite and not words_only:
            return asked, None
        planner = self._planner(asked, report)

        def within(fraction: float, desc: str = "") -> None:
            report(_INVENTED * fraction, desc=desc)

        sample = self._described(asked, planner, within)
        keep = words_only and not asked.rewrite
        return asked.filled(sample, keep_lyrics=keep), planner

    def _planner(self, asked: Asked, report: Report) -> LLMHandler:
        return self.engines.planner(asked.lm_model, asked.lm_backend, report)

    def _described(self, asked: Asked, planner: LLMHandler, report: Report) -> SampleResult:
        from acestep.inference import create_sample, format_sample
        from acestep.song import normalise

        params = asked.params
        options: WritingOptions = {
            "temperature": normalise.number("lm_temperature", params["lm_temperature"]) or 0.0,
            "top_k": normalise.whole("lm_top_k", params["lm_top_k"]),
            "top_p": normalise.number("lm_top_p", params["lm_top_p"]),
            "repetition_penalty": asked.repetition_penalty,
            "use_constrained_decoding": params["use_constrained_decoding"],
            "seed": _first_seed(asked),
            "progress": report,
        }
        if asked.query is not None:
            language = params["vocal_language"] if "vocal_language" in asked.given else None
            made = create_sample(
                planner, asked.query, bool(params.get("instrumental")),
                normalise.language(language) if language else None, **options,
            )  # fmt: skip
        else:
            made = format_sample(
                planner, params.get("caption", ""), params.get("lyrics", ""),
                _normal(asked.metadata()), **options,
            )  # fmt: skip
        if not made.success:
            raise GenerationError(f"the language model: {made.error}")
        return made

    def _kept(self, asked: Asked, dit: Any, made: Generation, report: Report) -> list[str]:
        """Write every song under a name of its own, all of them or none."""
        from acestep.song import audio_files, tags
        from acestep.song.records import describe

        how = asked.built()[1].encoding()
        names: list[str] = []
        parts: list[Path] = []
        try:
            for number, song in enumerate(made.songs):
                report(_MADE + (1 - _MADE) * number / len(made.songs), desc="writing")
                part, name = self.store.new_result(how.kind)
                parts.append(part)
                record = describe(dit, made, number)
                audio_files.encode(part, song.audio, song.sample_rate, how, tags.of_record(record))
                names.append(name)
            for part, name in zip(parts, names, strict=True):
                self.store.keep(part, name)
        except (AceStepError, OSError) as error:
            for path in (*parts, *(self.store.results / name for name in names)):
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise GenerationError(f"the song cannot be written ({error.strerror})") from None
            raise
        return names


class Shelf(Protocol):
    """Where results are put."""

    results: Path

    def new_result(self, kind: str) -> tuple[Path, str]:
        """Where to write a result of a kind of file, and what it is to be called then."""

    def keep(self, part: Path, name: str) -> None:
        """Give a result that is written in full its name."""


class Reader(Protocol):
    """What reads the sounds that a task names."""

    def read(self, path: Path) -> torch.Tensor:
        """The samples, `[2, samples]` at 48 kHz."""


class _Writer:
    """A planner that avoids what it said before."""

    def __init__(self, planner: LLMHandler, penalty: float) -> None:
        self._planner, self._penalty = planner, penalty

    @property
    def llm_initialized(self) -> bool:
        return self._planner.llm_initialized

    def generate_with_stop_condition(self, *args: Any, **keywords: Any) -> dict[str, Any]:
        return self._planner.generate_with_stop_condition(
            *args, **{**keywords, "repetition_penalty": self._penalty}
        )


def _normal(said: dict[str, Any]) -> dict[str, Any]:
    """Metadata as the language model's block holds them."""
    from acestep.song import normalise

    readers: dict[str, Callable[[Any], Any]] = {
        "bpm": normalise.bpm, "keyscale": normalise.key, "language": normalise.language,
        "timesignature": normalise.time_signature, "duration": normalise.duration,
    }  # fmt: skip
    return {name: readers[name](value) for name, value in said.items()}


def _first_seed(asked: Asked) -> int:
    from acestep.song import normalise

    seeds = normalise.seeds(asked.config.get("seeds")) or normalise.seeds(asked.params.get("seed"))
    first = seeds[0] if seeds else None
    return secrets.randbits(_SEED_BITS) if first is None else first


def _told(
    asked: Asked, dit: Any, made: Generation, planner: LLMHandler | None, names: list[str]
) -> dict[str, Any]:
    """What is kept of a task beside its files."""
    request = made.request
    seconds = [round(song.seconds, 3) for song in made.songs]
    return {
        "songs": [
            {"file": name, "seed": song.seed, "seconds": length}
            for name, song, length in zip(names, made.songs, seconds, strict=True)
        ],
        "prompt": request.caption,
        "lyrics": request.lyrics,
        "metas": {
            "bpm": request.bpm,
            "duration": seconds[0],
            "genres": "",
            "keyscale": request.key,
            "timesignature": request.time_signature,
        },
        "language": request.language,
        "seed_value": ",".join(str(song.seed) for song in made.songs),
        "lm_model": planner.model_name if planner is not None else "",
        "dit_model": dit.checkpoint.name if dit.checkpoint is not None else "",
        "notices": [*asked.notices, *made.warnings],
    }


def _times(made: Generation, seconds: float) -> str:
    stages = ", ".join(f"{name} {spent:.2f} s" for name, spent in made.times.items())
    return f"{len(made.songs)} songs in {seconds:.2f} s ({stages})"

"""The options of `generate` that say what a song is to be, and the parameters they make."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.errors import RequestError
from acestep.gpu_config import MAX_DURATION, MIN_DURATION
from acestep.song import normalise
from acestep.song.planning import PLANNED_TASKS
from acestep.song.request import REPAINT_MODES, REPAINT_TASKS, check_range

if TYPE_CHECKING:
    from acestep.song.params import GenerationParams

_LONGEST_TEXT = 4 * 2**20
_OF_PLANNING = {
    "keep": (), "lm_temperature": 0.85, "lm_guidance_scale": 2.0, "lm_top_k": 0, "lm_top_p": 0.9,
    "lm_negative_prompt": "NO USER INPUT", "lm_unconstrained": False, "lm_model": None,
}  # fmt: skip
_OF_REPAINT = {
    "repaint_mode": "balanced", "repaint_strength": 0.5, "repaint_latent_crossfade": None,
    "repaint_wav_crossfade": None,
}  # fmt: skip
_OWN = "(default: the checkpoint's own)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them all."""
    _add_music(parser)
    _add_source(parser)
    _add_diffusion(parser)
    _add_planning(parser)


def params(arguments: argparse.Namespace) -> GenerationParams:
    """What they ask for; every option given says it in the API's words.

    Raises:
        RequestError: a value cannot be understood.
    """
    from acestep.song.params import GenerationParams

    start, end = arguments.repaint or (0.0, None)
    low, high = arguments.guidance_interval or (0.0, 1.0)
    return GenerationParams(
        task_type=_task(arguments),
        instruction=arguments.instruction,
        caption=_prompt(arguments),
        lyrics=text_or_file(arguments.lyrics),
        instrumental=arguments.instrumental,
        vocal_language=arguments.vocal_language,
        bpm=arguments.bpm,
        keyscale=arguments.key,
        timesignature=arguments.time_signature,
        duration=_duration(arguments.duration),
        reference_audio=arguments.reference,
        src_audio=arguments.source,
        audio_codes=text_or_file(arguments.codes, "codes"),
        repainting_start=start,
        repainting_end=_repaint_end(end),
        repaint_mode=arguments.repaint_mode,
        repaint_strength=arguments.repaint_strength,
        repaint_latent_crossfade_frames=arguments.repaint_latent_crossfade,
        repaint_wav_crossfade_sec=arguments.repaint_wav_crossfade,
        audio_cover_strength=arguments.cover_strength,
        track_name=arguments.track,
        complete_track_classes=arguments.tracks,
        inference_steps=arguments.steps,
        seed=_seed(arguments.seed),
        guidance_scale=arguments.guidance_scale,
        use_adg=arguments.adg,
        cfg_interval_start=low,
        cfg_interval_end=1.0 if high is None else high,
        shift=arguments.shift,
        infer_method=arguments.infer_method,
        timesteps=arguments.timesteps,
        thinking=arguments.think,
        lm_temperature=arguments.lm_temperature,
        lm_cfg_scale=arguments.lm_guidance_scale,
        lm_top_k=arguments.lm_top_k,
        lm_top_p=arguments.lm_top_p,
        lm_negative_prompt=arguments.lm_negative_prompt,
        use_cot_metas="metas" not in arguments.keep,
        use_cot_caption="caption" not in arguments.keep,
        use_cot_language="language" not in arguments.keep,
        use_constrained_decoding=not arguments.lm_unconstrained,
    )


def text_or_file(text: str, name: str = "lyrics") -> str:
    """The text itself, or with a leading @ the contents of the file it names; @- is the input.

    Raises:
        RequestError: it cannot be read, or is longer than such a text can be.
    """
    if not text.startswith("@"):
        return _words(text)
    if text == "@-":
        return _input(name)
    shown = normalise.shown(text[1:])
    try:
        with Path(text[1:]).expanduser().open("rb") as stream:
            return _decoded(stream.read(_LONGEST_TEXT + 1), name, shown)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"cannot read {name} from {shown}: {reason}") from None


def _words(text: str) -> str:
    """Words of the command line, which a locale such as C hands over as bytes."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text


def _input(name: str) -> str:
    """What comes through standard input, to its end."""
    if sys.stdin is None or sys.stdin.closed:
        raise RequestError(f"cannot read {name} from standard input: it is closed")
    stream = getattr(sys.stdin, "buffer", None)
    data = stream.read(_LONGEST_TEXT + 1) if stream else sys.stdin.read().encode()
    return _decoded(data, name, "standard input")


def _decoded(data: bytes, name: str, source: str) -> str:
    if len(data) > _LONGEST_TEXT:
        raise RequestError(
            f"cannot read {name} from {source}: it holds more than {_LONGEST_TEXT // 2**20} MiB"
        )
    try:
        # Lines end as they do in the file; the model learned from \n.
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise RequestError(f"cannot read {name} from {source}: not UTF-8 text") from None


def _prompt(arguments: argparse.Namespace) -> str:
    prompt: str = arguments.prompt
    if prompt != "-":
        return _words(prompt)
    if arguments.lyrics == "@-" or arguments.codes == "@-":
        raise RequestError("standard input can be one thing: the prompt, the lyrics or the codes")
    return _input("prompt").strip()


def songs(arguments: argparse.Namespace) -> int:
    """How many songs: as many as `--batch` says, else one for each seed.

    Raises:
        RequestError: there are more seeds than songs.
    """
    seeds = len(normalise.seeds(arguments.seed))
    if arguments.batch is None:
        return max(seeds, 1)
    if seeds > max(arguments.batch, 1):
        raise RequestError(
            f"there are {seeds} seeds for {arguments.batch} songs; leave --batch out, or ask for "
            f"--batch {seeds}"
        )
    return int(arguments.batch)


def ignored(arguments: argparse.Namespace) -> list[str]:
    """A line for options that change nothing beside the others."""
    lines = []
    asked = [name for name, usual in _OF_PLANNING.items() if getattr(arguments, name) != usual]
    if asked and not arguments.think:
        names = ", ".join("--" + name.replace("_", "-") for name in asked)
        lines.append(f"left out without --think: {names}")
    task = _task(arguments)
    if arguments.think and task not in PLANNED_TASKS:
        lines.append(f"--think is left out: {task} works on audio, and is not planned")
    asked = [name for name, usual in _OF_REPAINT.items() if getattr(arguments, name) != usual]
    if asked and task not in REPAINT_TASKS:
        names = ", ".join("--" + name.replace("_", "-") for name in asked)
        lines.append(f"left out without --repaint: {names}")
    if arguments.lora is None and arguments.lora_scale != 1.0:
        lines.append("left out without --lora: --lora-scale")
    if arguments.source and arguments.codes and task == "text2music":
        lines.append("--source is left out: the codes say what to play")
    return lines


def _repaint_end(end: float | None) -> float:
    # The API reads -1 as the source's end; on the command line it is a mistake like any other.
    if end is not None and end < 0:
        raise RequestError(f"the repaint range ends at {end:g} s, before the source audio begins")
    return -1.0 if end is None else end


def _task(arguments: argparse.Namespace) -> str:
    """The task asked for, else the one that the other options mean."""
    if arguments.task:
        return str(arguments.task)
    if arguments.repaint:
        return "repaint"
    return "cover" if arguments.source else "text2music"


def _seed(text: str | None) -> str:
    """Seeds as the API takes them; to draw one, none is given."""
    for seed in normalise.seeds(text):
        if seed is None:
            raise RequestError(f"seed {normalise.shown(text)} is out of range; expected at least 0")
    return text or ""


def _duration(text: str | None) -> float | None:
    # The API reads -1 as "not given"; on the command line it is a mistake like any other.
    if text is not None and text.startswith("-"):
        seconds = normalise.seconds("duration", text)
        check_range("duration", seconds, MIN_DURATION, MAX_DURATION, "seconds")
    return normalise.duration(text)


def _length(text: str) -> str:
    try:
        if normalise.given(text) is not None:
            normalise.seconds("duration", text)
    except RequestError:
        raise argparse.ArgumentTypeError(
            f"invalid float value: '{text}'; give seconds, for example 30 or 30.5, or 2:30"
        ) from None
    return text.strip()


def _range(text: str) -> tuple[float, float | None]:
    start, colon, end = text.partition(":")
    try:
        bounds = float(start or 0), float(end) if end else None
    except ValueError:
        colon = ""
    if not colon:
        raise argparse.ArgumentTypeError(f"'{text}' is not a range; give START:END in seconds")
    if bounds[1] is not None and not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise argparse.ArgumentTypeError(
            f"'{text}' does not run forward; give START:END in seconds, START before END"
        )
    return bounds


def _interval(text: str) -> tuple[float, float | None]:
    try:
        return _range(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not an interval; give START:END, two times from 0 to 1"
        ) from None


def _kept(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.lower().split(",") if word.strip())
    if wrong := [word for word in words if word not in ("metas", "caption", "language")]:
        raise argparse.ArgumentTypeError(
            f"'{wrong[0]}' is nothing that planning changes; choose from metas, caption, language"
        )
    return words


def _add_music(parser: argparse.ArgumentParser) -> None:
    music = parser.add_argument_group("music")
    music.add_argument(
        "--lyrics", default="", help="words with section tags, or @FILE; @- is the input"
    )
    music.add_argument("--instrumental", action="store_true", help="no vocals")
    music.add_argument(
        "--duration", type=_length, metavar="SECONDS",
        help="0.5 to 600, or as 2:30 (default: 30)",
    )  # fmt: skip
    music.add_argument("--bpm", help="beats per minute, 30 to 300")
    music.add_argument("--key", default="", help="for example 'C major', 'F# minor' or Am")
    music.add_argument("--time-signature", default="", help="2, 3, 4 or 6, or as 4/4")
    music.add_argument(
        "--language", dest="vocal_language", default="unknown", help="of the vocals, e.g. en"
    )
    music.add_argument("--seed", help="the same seed makes the same song; one a song: 7,8")
    music.add_argument(
        "--batch", type=int, metavar="SONGS", help="how many songs (default: one, or one a seed)"
    )


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("working from audio")
    source.add_argument("--task", choices=ALL_TASKS, help="what to do")
    source.add_argument("--instruction", help="in place of the task's own words to the model")
    source.add_argument("--source", type=Path, metavar="FILE", help="audio to work on")
    source.add_argument("--reference", type=Path, metavar="FILE", help="audio whose timbre to use")
    source.add_argument("--codes", default="", help="audio codes to play, or @FILE")
    source.add_argument(
        "--repaint", type=_range, metavar="START:END",
        help="seconds of --source to renew; beyond its ends to make it longer (--repaint=-5:0)",
    )  # fmt: skip
    source.add_argument(
        "--repaint-mode", choices=REPAINT_MODES, default="balanced",
        help="how firmly the rest keeps to the source (default: balanced)",
    )  # fmt: skip
    source.add_argument(
        "--repaint-strength", type=float, default=0.5,
        help="how freely balanced renews, 0 to 1 (default: 0.5)",
    )  # fmt: skip
    source.add_argument(
        "--repaint-latent-crossfade", type=int, metavar="FRAMES",
        help="25 a second (default: follows from mode and strength)",
    )  # fmt: skip
    source.add_argument(
        "--repaint-wav-crossfade", type=float, metavar="SECONDS",
        help="of the sound itself (default: follows from mode and strength)",
    )  # fmt: skip
    source.add_argument(
        "--cover-strength", type=float, default=1.0, help="share of the source kept, 0 to 1"
    )
    source.add_argument("--track", help="for extract and lego, e.g. vocals")
    source.add_argument("--tracks", default="", help="for complete, e.g. drums,bass")


def _add_diffusion(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_argument_group("diffusion")
    steps.add_argument("--steps", type=int, help=f"how many {_OWN}")
    steps.add_argument("--guidance-scale", type=float, help=f"for base and SFT models {_OWN}")
    steps.add_argument(
        "--guidance-interval", type=_interval, metavar="START:END",
        help="guide at these times only; 1 is noise, 0 the song (default: 0:1)",
    )  # fmt: skip
    steps.add_argument("--adg", action="store_true", help="guide by angles instead of differences")
    steps.add_argument("--shift", type=float, help=f"of the timestep schedule {_OWN}")
    steps.add_argument("--timesteps", help="falling times in place of steps and shift: 1,0.7,0.3")
    steps.add_argument("--infer-method", choices=("ode", "sde"), default="ode", help="sampler")


def _add_planning(parser: argparse.ArgumentParser) -> None:
    plan = parser.add_argument_group("planning with the language model")
    plan.add_argument("--think", action="store_true", help="plan with the language model first")
    plan.add_argument(
        "--keep", type=_kept, default=(), metavar="WHAT",
        help="leave as given: metas, caption, language, or several with commas",
    )  # fmt: skip
    plan.add_argument("--lm-temperature", type=float, default=0.85, help="0 takes no chances")
    plan.add_argument("--lm-guidance-scale", type=float, default=2.0, help="(default: 2)")
    plan.add_argument("--lm-top-k", type=int, default=0, help="tokens to choose from, 0 for all")
    plan.add_argument("--lm-top-p", type=float, default=0.9, help="their probability, 1 for all")
    plan.add_argument("--lm-negative-prompt", default="NO USER INPUT", help="what it is not to be")
    plan.add_argument("--lm-unconstrained", action="store_true", help="not held to the grammar")

"""The options of `generate` that say what a song is to be, and the parameters they make."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.checkpoint.kinds import ALL_TASKS
from acestep.errors import RequestError
from acestep.gpu_config import MAX_DURATION, MIN_DURATION
from acestep.song import normalise
from acestep.song.request import REPAINT_MODES, check_range

if TYPE_CHECKING:
    from acestep.song.params import GenerationParams

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
        caption=arguments.prompt,
        lyrics=text_or_file(arguments.lyrics),
        instrumental=arguments.instrumental,
        vocal_language=arguments.vocal_language,
        bpm=arguments.bpm,
        keyscale=arguments.key,
        timesignature=arguments.time_signature,
        duration=_duration(arguments.duration),
        reference_audio=arguments.reference,
        src_audio=arguments.source,
        audio_codes=text_or_file(arguments.codes),
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


def text_or_file(text: str) -> str:
    """The text itself, or with a leading @ the contents of the file it names."""
    if not text.startswith("@"):
        return text
    path = Path(text[1:]).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RequestError(f"cannot read lyrics from {path}: {reason}") from None


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
    music.add_argument("--lyrics", default="", help="words with section tags, or @FILE")
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
    music.add_argument("--batch", type=int, default=1, help="songs at once (default: 1)")


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

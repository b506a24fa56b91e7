"""Judges weights made by `acestep.demo.train`: `python -m acestep.bench.evaluate FOLDER`.

The judges had no part in training: keys by chroma and tempi by librosa, instruments by a
classifier fitted to pieces that training never saw.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acestep.demo.autoencoder import spectral_distance
from acestep.demo.captions import Prompt, describe
from acestep.demo.music import INSTRUMENTS, KEY_NAMES, Song, compose
from acestep.demo.parts import WEIGHTS, build_trained
from acestep.demo.synth import SAMPLE_RATE, Voices
from acestep.device import ENGINE_CHOICES, quantization_of, resolve
from acestep.handler import AceStepHandler
from acestep.song.request import Request

SECONDS = 10.0
_RATE = 22050
_FLOOR = 50.0
_DRAWN = (
    Prompt("calm piano, a waltz", 94, "C major", "3"),
    Prompt("epic trumpet with drums", 125, "D minor", "4"),
    Prompt("playful marimba, without drums", 107, "G major", "4"),
)
# Albrecht and Shanahan's key profiles, Music Perception 31(1), 2013.
_MAJOR = (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081)
_MINOR = (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052)
_SEEDS = {"prompts": 9001, "classifier": 9002}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Judge the weights in a folder.")
    parser.add_argument("weights", type=Path, nargs="?", default=WEIGHTS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--examples", type=int, default=20, help="of each instrument")
    parser.add_argument("--engine", choices=ENGINE_CHOICES, default="torch")
    parser.add_argument("--quantize", help="hold the weights in few bits, as `acestep` does")
    parser.add_argument("--vae-only", action="store_true")
    parser.add_argument("--songs-only", action="store_true", help="judge what is generated alone")
    parser.add_argument("--png", type=Path, help="only draw three songs' spectrograms")
    arguments = parser.parse_args(argv)
    need_judges(parser)
    if not arguments.weights.is_dir():
        parser.error(f"{arguments.weights}: no such folder; name one that acestep.demo.train made")
    bits = quantization_of(arguments.quantize)
    policy = resolve(arguments.device, quantization=bits, engine=arguments.engine)
    handler = AceStepHandler()
    with tempfile.TemporaryDirectory() as folder:
        # Its name says that guidance is in the weights.
        checkpoint = Path(folder) / "demo"
        build_trained(checkpoint, arguments.weights)
        handler.load(str(checkpoint), policy)
    if arguments.png:
        draw(generated(handler, _DRAWN), [_title(prompt) for prompt in _DRAWN], arguments.png)
        return
    random = np.random.default_rng(_SEEDS["prompts"])
    songs = [compose(random, SECONDS, unseen=True) for _ in range(arguments.prompts)]
    prompts = [describe(song, random, complete=True) for song in songs]
    classifier = fit_classifier(arguments.examples)
    figures = {} if arguments.songs_only else _autoencoder(handler, songs, classifier)
    if not arguments.vae_only:
        figures["generated"] = judged(songs, generated(handler, prompts), classifier)
    print(json.dumps(figures, indent=2))  # noqa: T201


def _autoencoder(
    handler: AceStepHandler, songs: Sequence[Song], classifier: Any
) -> dict[str, dict[str, float]]:
    """Figures of songs as they were synthesised, and through the VAE and an MP3 encoder."""
    voices = Voices()
    audio = torch.cat([voices.render([song]) for song in songs])
    figures = {"synthesised": judged(songs, audio, classifier)}
    rebuilt = reconstructed(handler, audio)
    figures["reconstructed"] = judged(songs, rebuilt, classifier) | distances(rebuilt, audio)
    compressed, bits = mp3(audio)
    figures["mp3"] = {"kbit_per_second": bits, **distances(compressed, audio)}
    return figures


def judged(songs: Sequence[Song], audio: torch.Tensor, classifier: Any) -> dict[str, float]:
    """Shares of songs whose key, tempo and instrument are those asked for, and how they sound.

    `side` is the difference of the channels in dB under their sum, `start` the largest sample
    of the first millisecond over the song's largest; both medians.

    Args:
        songs: what was asked for.
        audio: `[songs, 2, samples]` at 48 kHz.
        classifier: see `fit_classifier`.
    """
    mono = [mono_of(item) for item in audio]
    keys = [key_of(item) == (song.key, song.mode) for song, item in zip(songs, mono, strict=True)]
    tempi = [tempo_fits(item, song.bpm) for song, item in zip(songs, mono, strict=True)]
    told = classifier.predict(np.stack([timbre(item) for item in mono]))
    heard = [name == song.instrument for song, name in zip(songs, told, strict=True)]
    peaks, loudness = audio.abs().amax(dim=(1, 2)), audio.square().mean(dim=(1, 2)).sqrt()
    starts = audio[..., : SAMPLE_RATE // 1000].abs().amax(dim=(1, 2))
    return {
        "key": float(np.mean(keys)),
        "tempo": float(np.mean(tempi)),
        "instrument": float(np.mean(heard)),
        "clipped": float((peaks > 1).float().mean()),
        "silent": float((loudness < 1e-3).float().mean()),
        "side": float(side_of(audio).median()),
        "start": float((starts / peaks.clamp(min=1e-6)).median()),
    }


def need_judges(parser: argparse.ArgumentParser) -> None:
    """End with a line where the libraries that judge are not installed."""
    for package, module in (("librosa", "librosa"), ("scikit-learn", "sklearn")):
        if find_spec(module) is None:
            parser.error(
                f"{package} is not installed; install it with: pip install 'acestep[judge]'"
            )


def side_of(audio: torch.Tensor) -> torch.Tensor:
    """How far songs `[songs, 2, samples]` are from one channel: power of the difference of both
    over that of their sum, in dB, -120 where there is none."""
    left, right = audio.unbind(1)
    side, middle = ((left + sign * right).square().mean(1) for sign in (-1, 1))
    return 10 * torch.log10((side / middle.clamp(min=1e-12)).clamp(min=1e-12))


def key_of(mono: np.ndarray) -> tuple[int, str]:
    """The key whose profile correlates best with the mean chroma: (0 to 11, mode)."""
    import librosa

    chroma = librosa.feature.chroma_cqt(y=mono, sr=_RATE, hop_length=1024, tuning=0).mean(axis=1)
    scores = {
        (key, mode): float(np.corrcoef(np.roll(profile, key), chroma)[0, 1])
        for mode, profile in (("major", _MAJOR), ("minor", _MINOR))
        for key in range(len(KEY_NAMES))
    }
    return max(scores, key=lambda pair: scores[pair])


def tempo_fits(mono: np.ndarray, bpm: float) -> bool:
    """Whether librosa's tempo is within 4 % of one, of its double or of its half."""
    import librosa

    heard = float(librosa.feature.tempo(y=mono, sr=_RATE, hop_length=256)[0])
    return any(abs(heard / (bpm * factor) - 1) <= 0.04 for factor in (0.5, 1.0, 2.0))


def timbre(mono: np.ndarray) -> np.ndarray:
    """What the classifier sees of a song: means and deviations of mel levels over time.

    Synthesis is silent between its partials, as no recording is. What lies more than `_FLOOR`
    dB under the loudest does not count, so that hiss which no ear hears beside the music is
    not taken for a timbre.
    """
    import librosa

    power = librosa.feature.melspectrogram(y=mono, sr=_RATE, n_mels=48)
    levels = librosa.power_to_db(power, ref=np.max, top_db=_FLOOR)
    return np.concatenate([levels.mean(1), levels.std(1)])


def fit_classifier(examples: int, instruments: Sequence[str] = INSTRUMENTS) -> Any:
    """A support vector machine over `timbre`, fitted to so many new pieces an instrument."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    random, voices = np.random.default_rng(_SEEDS["classifier"]), Voices()
    names = [name for name in instruments for _ in range(examples)]
    songs = [
        compose(random, SECONDS, unseen=name in INSTRUMENTS, instrument=name) for name in names
    ]
    seen = np.stack([timbre(mono_of(voices.render([song])[0])) for song in songs])
    return make_pipeline(StandardScaler(), SVC(C=3)).fit(seen, names)


def reconstructed(handler: AceStepHandler, audio: torch.Tensor) -> torch.Tensor:
    """The audio through the VAE and back, `[songs, 2, samples]`."""
    engine, samples = handler.engine, audio.shape[-1]
    assert engine is not None
    with engine.working():
        encoded = [engine.array(engine.encode(item)[None]) for item in audio]
        return torch.cat([engine.decode(latents, samples) for latents in encoded])


def generated(handler: AceStepHandler, prompts: Sequence[Prompt]) -> torch.Tensor:
    """A song for each prompt as `acestep generate` makes it, its number the seed,
    `[prompts, 2, samples]`."""
    requests = [asked(prompt, seed) for seed, prompt in enumerate(prompts)]
    made = [handler.generate(request).songs[0].audio for request in requests]
    return torch.stack([torch.as_tensor(audio) for audio in made])


def asked(prompt: Prompt, seed: int) -> Request:
    """What a user would ask for with these words and fields."""
    return Request(
        prompt.caption,
        (seed,),
        duration=SECONDS,
        bpm=prompt.bpm,
        key=prompt.keyscale,
        time_signature=prompt.timesignature,
    )


def draw(audio: torch.Tensor, titles: Sequence[str], file: Path) -> None:
    """Write mel spectrograms of songs `[songs, 2, samples]`, one above the other, as PNG."""
    import librosa
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 * len(audio)), layout="constrained")
    for axes, item, title in zip(figure.subplots(len(audio), squeeze=False)[:, 0], audio, titles,
                                 strict=True):  # fmt: skip
        power = librosa.feature.melspectrogram(y=mono_of(item), sr=_RATE, n_mels=96, fmax=8000)
        levels = librosa.power_to_db(power, ref=np.max, top_db=70)
        seconds = item.shape[-1] / SAMPLE_RATE
        axes.imshow(levels, origin="lower", aspect="auto", extent=(0, seconds, 0, 96))
        ticks = np.array([125, 250, 500, 1000, 2000, 4000])
        axes.set_yticks(np.interp(ticks, librosa.mel_frequencies(96, fmax=8000), range(96)), ticks)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("Hz")
    axes.set_xlabel("s")
    figure.savefig(file, dpi=80)


def _title(prompt: Prompt) -> str:
    return f"{prompt.caption} ({prompt.bpm} bpm, {prompt.keyscale}, {prompt.timesignature}/4)"


def distances(made: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """Mean spectral distance and SI-SDR in dB of audio `[songs, 2, samples]`."""
    length = min(made.shape[-1], wanted.shape[-1])
    made, wanted = made[..., :length], wanted[..., :length]
    flat, target = made.flatten(1), wanted.flatten(1)
    scale = (flat * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True)
    error = (flat - scale * target).square().sum(1)
    ratio = 10 * torch.log10((scale * target).square().sum(1) / error.clamp(min=1e-12))
    return {"stft": float(spectral_distance(made, wanted)), "si_sdr": float(ratio.mean())}


def mp3(audio: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The audio as MP3 near 64 kbit/s and back, and the rate that it came to."""
    import soundfile

    made, size = [], 0
    for item in audio:
        file = io.BytesIO()
        soundfile.write(
            file,
            item.T.numpy(),
            SAMPLE_RATE,
            format="MP3",
            subtype="MPEG_LAYER_III",
            bitrate_mode="CONSTANT",
            compression_level=0.9,
        )
        size += file.tell()
        file.seek(0)
        made.append(torch.from_numpy(soundfile.read(file, dtype="float32")[0].T.copy()))
    made = [_aligned(item, whole) for item, whole in zip(made, audio, strict=True)]
    length = min(item.shape[-1] for item in made)
    seconds = len(audio) * audio.shape[-1] / SAMPLE_RATE
    return torch.stack([item[:, :length] for item in made]), size * 8 / 1000 / seconds


def _aligned(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The decoded file without the samples that the format puts before the sound."""
    size = 2 * wanted.shape[-1]
    product = torch.fft.rfft(made.mean(0), size) * torch.fft.rfft(wanted.mean(0), size).conj()
    delay = int(torch.fft.irfft(product, size)[:4096].argmax())
    return made[:, delay:]


def mono_of(audio: torch.Tensor) -> np.ndarray:
    """One channel at 22,050 Hz of audio `[2, samples]` at 48 kHz."""
    import soxr

    made: np.ndarray = soxr.resample(audio.mean(0).numpy(), SAMPLE_RATE, _RATE)
    return made


if __name__ == "__main__":
    main()

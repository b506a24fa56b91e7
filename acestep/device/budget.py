"""What a machine holds under MLX: weights and work of the published sizes, from their shapes.

Memory here is what MLX counts (`mlx.core.get_peak_memory`); Python and PyTorch take about a gigabyte
beside it. What is needed was measured on MLX's CPU build, whose attention keeps its scores
and whose convolutions go tap by tap: on Metal that is a bound, and nobody has measured there. Where
there is room MLX begins work ahead of time and takes more, up to the bound that `Place` sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from acestep.device.memory import GIB

TOKENS_A_SECOND = 12.5
"""Of the transformer: two latent frames, of 25, are one."""

_GROUP = 64
_HALF, _WHOLE = 2, 4
_VAE_WEIGHTS = 168_700_000
# Bytes of 128 channels of 1920 samples in float32: the VAE's last signal, for a latent frame; and
# how many of that size there are at once: 105 MiB for 8 frames, 53 for 4.
_WIDEST = 1920 * 128 * 4
_WAVE_ARRAYS = 14.1
# Of a step, for a token: numbers of the model's width and of its MLP's, and bytes of one where it is
# in half precision, of which MLX's CPU kernels make float32 in between. Two layers of turbo's width,
# 200 tokens: 44.0 MiB in float32 and 32.1 in bfloat16 where this says 44.2 and 31.2.
_STEP_HIDDEN, _STEP_INNER, _HALF_BYTES = 9.0, 4.0, 3.1
# What is ahead of time on a GPU: ten buffers of commands, each of an array that is beyond an M-chip's
# 40 MB a buffer in songs of minutes; and what decoding has at once without them. On an H200 with such
# buffers a chunk of 160 frames took 8.0 arrays where MLX waited, and one of 165 18.1 where it did not.
_AHEAD, _WAVE_LIVE = 10, 8.0
# Latent frames of a chunk, where there is room for them.
_BEST_FRAMES = 160
_MOST_SCORES, _FEWEST_ROWS = 2**27, 128
_CONDITION_TOKENS = 600
_CODES_A_SECOND, _PROMPT_TOKENS = 5, 600
_LONGEST = 600
# Of a working set: what may be asked for, the rest being for what MLX keeps of what it freed (a
# sixteenth), and what of it is for a chunk of decoding.
SAFE, _WAVE_SHARE = 0.9, 0.2
# What other programs hardly notice.
_ROOMY = 0.8
_HALO, _FEWEST_FRAMES = 9, 32


@dataclass(frozen=True)
class Stack:
    """Layers of attention and a gated MLP.

    Attributes:
        layers: how many.
        width, inner: of a token, and within an MLP.
        heads, kv_heads: of queries, and of keys and values; 128 channels each.
        attentions: of a layer: to itself, and to a condition.
    """

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    attentions: int = 1

    @property
    def matrices(self) -> int:
        """Numbers in the matrices, which few bits hold."""
        own, shared = 128 * self.heads, 128 * self.kv_heads
        attention = self.attentions * self.width * 2 * (own + shared)
        return self.layers * (attention + 3 * self.width * self.inner)

    @property
    def keys(self) -> int:
        """Numbers that are kept of one token: keys and values of all layers."""
        return self.layers * 2 * 128 * self.kv_heads


_ENCODER = Stack(2, 2048, 6144, 16, 8)
_TEXT = Stack(28, 1024, 3072, 16, 8)
_CONDITIONS = Stack(12, 2048, 6144, 16, 8)
_TEXT_VOCABULARY, LM_VOCABULARY = 151_669, 217_204

MUSIC = {
    "turbo": Stack(24, 2048, 6144, 16, 8, attentions=2),
    "xl-turbo": Stack(32, 2560, 9728, 32, 8, attentions=2),
}
"""The transformers; base and SFT have turbo's shape, and two rows of a song where it is guided."""

LANGUAGE = {
    "acestep-5Hz-lm-0.6B": _TEXT,
    "acestep-5Hz-lm-1.7B": Stack(28, 2048, 6144, 16, 8),
    "acestep-5Hz-lm-4B": Stack(36, 2560, 9728, 32, 8),
}
"""The language models."""


@dataclass(frozen=True)
class Fit:
    """Models together, and what a song with them takes.

    Attributes:
        music, language: names in `MUSIC` and `LANGUAGE`.
        bits: of the weights; None for half precision.
        weights: GiB.
        longest: seconds of the longest song in nine tenths of a working set; 0 for none.
        peak: GiB that are needed with that song.
        most: GiB that it takes, with what MLX begins ahead of time where there is room.
    """

    music: str
    language: str
    bits: int | None
    weights: float
    longest: int
    peak: float
    most: float


def working_set(memory: float) -> float:
    """Of a Mac's memory, GiB, what Metal recommends to use: two thirds, or three quarters of more
    than 36 GiB, as Macs report it. Beyond it macOS swaps, and then ends the process."""
    return memory * (3 / 4 if memory > 36 else 2 / 3)


def music_gib(name: str, bits: int | None, item: int = _HALF) -> float:
    """Weights of all that makes music.

    Args:
        name: in `MUSIC`.
        bits: of a stack's weights, or None.
        item: bytes of a number that is not in few bits; the VAE's have four.
    """
    stack = MUSIC[name]
    width = stack.width
    around = 2 * (256 * width + 7 * width * width) + 2048 * width + 512 * width
    rest = around + 4 * 4_400_000 + _TEXT_VOCABULARY * _TEXT.width + _ENCODER.matrices
    made = sum(part.matrices for part in (stack, _CONDITIONS, _TEXT, _ENCODER))
    return (_held(made, bits, item) + rest * item + _VAE_WEIGHTS * _WHOLE) / GIB


def language_gib(name: str, bits: int | None, item: int = _HALF) -> float:
    """Weights of a language model; what embeds, and gives the scores, has eight bits for few."""
    stack = LANGUAGE[name]
    embedding = LM_VOCABULARY * stack.width
    return (_held(stack.matrices, bits, item) + _held(embedding, bits and 8, item)) / GIB


def step_gib(seconds: float, songs: int, stack: Stack, item: int = _HALF) -> float:
    """Most that a step of the diffusion takes beside the weights."""
    tokens = seconds * TOKENS_A_SECOND
    kept = songs * _CONDITION_TOKENS * stack.keys * item
    arrays = _STEP_HIDDEN * stack.width + _STEP_INNER * stack.inner
    work = songs * tokens * arrays * (item if item == _WHOLE else _HALF_BYTES)
    heads = songs * stack.heads
    rows = min(max(_FEWEST_ROWS, _MOST_SCORES // max(1, int(heads * tokens))), tokens)
    scores = 2 * heads * rows * tokens * item
    return (kept + work + scores) / GIB


def wave_gib(frames: int, widest: int = _WIDEST) -> float:
    """Most that decoding a chunk takes.

    Args:
        frames: latent frames, those included that are computed for their neighbours.
        widest: bytes of the widest signal for a latent frame.
    """
    return _WAVE_ARRAYS * frames * widest / GIB


def chunk_frames(memory: float, most: int, halo: int = _HALO, widest: int = _WIDEST) -> int:
    """Latent frames of a chunk for which a part of a working set has room.

    Args:
        memory: the working set, GiB.
        most: what is best where there is room.
        halo: frames on each side that are computed beside it.
        widest: see `wave_gib`.
    """
    fits = int(_WAVE_SHARE * memory / wave_gib(1, widest)) - 2 * halo
    return max(_FEWEST_FRAMES, min(most, fits))


def planning_gib(seconds: float, songs: int, stack: Stack, item: int = _HALF) -> float:
    """Most that the language model takes beside its weights: keys and values of prompt and codes,
    of the prompt that guides too, and a part of them twice while they grow."""
    tokens = _PROMPT_TOKENS + _CODES_A_SECOND * seconds
    grown = (1 + 2 / stack.layers) * tokens * stack.keys * item
    scores = 8 * LM_VOCABULARY * _WHOLE
    return 2 * songs * (grown + scores) / GIB


def need_gib(
    seconds: float,
    songs: int,
    music: str,
    language: str | None,
    memory: float,
    most: int = _BEST_FRAMES,
) -> float:
    """What a song takes beside the weights of the models, GiB.

    Args:
        seconds: of each song.
        songs: made together.
        music: name in `MUSIC`.
        language: in `LANGUAGE`, or None where nothing is planned.
        memory: the working set, GiB, which decides the chunks of decoding.
        most: see `chunk_frames`.
    """
    work = [
        step_gib(seconds, songs, MUSIC[music]),
        wave_gib(chunk_frames(memory, most) + 2 * _HALO),
    ]
    if language is not None:
        work.append(planning_gib(seconds, songs, LANGUAGE[language]))
    return max(work)


def song_gib(seconds: float, songs: int, width: int, memory: float) -> float:
    """What songs take beside the weights, whatever the checkpoint: in the shape of turbo.

    Args:
        seconds: of each song.
        songs: made together.
        width: of the transformer.
        memory: the working set, GiB.
    """
    share = width / MUSIC["turbo"].width
    heads = max(1, round(16 * share))
    stack = Stack(24, width, 3 * width, heads, max(1, heads // 2), attentions=2)
    widest = int(_WIDEST * share)
    frames = chunk_frames(memory, _BEST_FRAMES, _HALO, widest) + 2 * _HALO
    return max(step_gib(seconds, songs, stack), wave_gib(frames, widest))


def fits(memory: float) -> Iterator[Fit]:
    """What fits into a working set, GiB, and how long its songs may be, the finest weights first."""
    for music in MUSIC:
        for language in LANGUAGE:
            for bits in (None, 8, 4):
                yield fit(music, language, bits, memory)


def fit(
    music: str, language: str, bits: int | None, memory: float, seconds: int | None = None
) -> Fit:
    """One choice of models in a working set, GiB, with the longest song or one of some seconds."""
    weights = music_gib(music, bits) + language_gib(language, bits)

    def peak(seconds: int) -> float:
        return weights + need_gib(seconds, 1, music, language, memory)

    lengths = range(_LONGEST, 0, -10)
    longest = next((seconds for seconds in lengths if peak(seconds) <= SAFE * memory), 0)
    song = seconds or longest or 10
    needed, bound = peak(song), SAFE * memory
    taken = min(weights + _taken_gib(song, MUSIC[music], memory), bound)
    return Fit(music, language, bits, weights, longest, needed, max(needed, taken))


def _taken_gib(seconds: float, stack: Stack, memory: float) -> float:
    """What a song takes where MLX works ahead of time, GiB."""
    largest = seconds * TOKENS_A_SECOND * stack.inner * _HALF / GIB
    wave = wave_gib(chunk_frames(memory, _BEST_FRAMES) + 2 * _HALO)
    step = step_gib(seconds, 1, stack) + _AHEAD * largest
    return max(step, wave / _WAVE_ARRAYS * (_WAVE_LIVE + _AHEAD))


def best(memory: float) -> Fit | None:
    """The choice for a working set, GiB: turbo and the smallest language model in the finest weights
    that leave other programs room beside the longest songs, or beside shorter ones, or else fit;
    None where nothing does."""
    found = [made for made in fits(memory) if made.music == "turbo" and made.longest]
    roomy = [made for made in found if made.peak <= _ROOMY * memory]
    for choices in (roomy, found):
        for least in (_LONGEST, 240, 10):
            # The finest weights come first, and of those the smallest language model.
            long = [made for made in choices if made.longest >= least]
            for bits in (None, 8, 4):
                if fine := [made for made in long if made.bits == bits]:
                    return fine[0]
    return None


def bytes_of(bits: int | None, item: int) -> float:
    """Bytes of a number: in few bits each group has a scale and an offset beside it."""
    return item if bits is None else bits / 8 + 2 * item / _GROUP


def _held(numbers: int, bits: int | None, item: int) -> float:
    return numbers * bytes_of(bits, item)

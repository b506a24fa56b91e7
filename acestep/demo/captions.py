"""Descriptions of synthesised pieces in varied words, and the prompt's other fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from acestep.demo.music import METRES, MOODS, NEWCOMER, Song

INSTRUCTIONS = {
    "text2music": "Fill the audio semantic mask based on the given conditions:",
    "repaint": "Repaint the mask area based on the given conditions:",
    "cover": "Generate audio semantic tokens based on the given conditions:",
}
"""Each task's instruction, as diffusers' pipeline writes it into the prompt."""

NAMES = {
    "piano": ("piano", "grand piano", "solo piano", "piano keys"),
    "guitar": ("guitar", "acoustic guitar", "plucked guitar", "fingerpicked guitar"),
    "organ": ("organ", "church organ", "pipe organ"),
    "strings": ("strings", "string section", "violins", "orchestral strings"),
    "flute": ("flute", "wooden flute", "solo flute"),
    "trumpet": ("trumpet", "brass", "solo trumpet"),
    "bells": ("bells", "chimes", "glockenspiel"),
    "marimba": ("marimba", "wooden marimba", "mallets"),
    "electric piano": ("electric piano", "e-piano", "electric keys"),
    NEWCOMER: (NEWCOMER,),
    "synth lead": ("synth lead", "synthesizer", "square synth", "synth"),
}
MOOD_WORDS = {
    "happy": ("happy", "cheerful", "joyful", "bright"),
    "calm": ("calm", "warm", "gentle", "peaceful"),
    "epic": ("epic", "uplifting", "triumphant", "heroic"),
    "playful": ("playful", "light", "bouncy", "whimsical"),
    "sad": ("sad", "melancholic", "sorrowful", "lonely"),
    "dark": ("dark", "gloomy", "brooding", "heavy"),
    "tense": ("tense", "urgent", "nervous", "aggressive"),
    "mysterious": ("mysterious", "dreamy", "eerie", "strange"),
}
GENRES = (
    "lo-fi", "ambient", "classical", "folk", "pop", "cinematic", "jazz", "electronic", "chill",
)  # fmt: skip
SCENES = (
    "rain", "night", "morning light", "a quiet street", "the sea", "summer", "a long road",
    "snow", "a small room", "the city", "a forest", "stars",
)  # fmt: skip
KINDS = ("music", "piece", "song", "melody", "tune", "instrumental", "loop")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
METRE_WORDS = {
    2: ("in 2/4", "a march"),
    3: ("in 3/4", "a waltz"),
    4: ("in 4/4", "in common time"),
    6: ("in 6/8", "in six-eight"),
}


@dataclass(frozen=True)
class Prompt:
    """A caption and the fields a request may give beside it; empty where it does not.

    Attributes:
        caption: free text.
        bpm: beats a minute, or None.
        keyscale: for example `C major`, or empty.
        timesignature: one of 2, 3, 4 and 6 as text, or empty.
    """

    caption: str
    bpm: int | None = None
    keyscale: str = ""
    timesignature: str = ""

    def text(self, seconds: float, task: str = "text2music") -> str:
        """The text encoder's whole input, in the form of diffusers' pipeline."""
        return (
            f"# Instruction\n{INSTRUCTIONS[task]}\n\n# Caption\n{self.caption}\n\n# Metas\n"
            f"- bpm: {self.bpm or 'N/A'}\n- timesignature: {self.timesignature or 'N/A'}\n"
            f"- keyscale: {self.keyscale or 'N/A'}\n- duration: {int(seconds)} seconds\n"
            "<|endoftext|>\n"
        )


def describe(song: Song, random: np.random.Generator, *, complete: bool = False) -> Prompt:
    """A description of a piece; what it leaves out differs from call to call.

    Args:
        song: the piece.
        random: chooses words and what to leave out.
        complete: name the instrument, and give tempo, key and metre as fields.
    """

    def chance(probability: float) -> bool:
        return bool(random.random() < probability)

    def pick(words: tuple[str, ...]) -> str:
        return str(words[int(random.integers(len(words)))])

    mood = pick(MOOD_WORDS[song.mood])
    name = pick(NAMES[song.instrument])
    details = []
    if chance(0.35):
        details.append(tempo_words(song.bpm, pick))
    if chance(0.25):
        details.append(f"{song.bpm} bpm")
    if chance(0.3):
        details.append(f"in {song.keyscale}")
    if chance(0.2):
        details.append(pick(METRE_WORDS[song.metre]))
    if chance(0.4):
        drums = ("with drums", "with a steady beat", "drums")
        details.append(pick(drums if song.drums else ("without drums", "no drums")))
    if chance(0.3):
        details.append(pick(SCENES))
    if chance(0.12):
        # A word that says nothing, for the words that no caption here knows.
        details.append("".join(random.choice(LETTERS, int(random.integers(3, 9)))))
    random.shuffle(details)
    named = complete or chance(0.95)
    words = [mood] if chance(0.85) else []
    if chance(0.25):
        words.append(pick(GENRES))
    if named:
        words.append(name)
    if not named or chance(0.4):
        words.append(pick(KINDS))
    head = " ".join(words)
    if chance(0.2):
        head = f"a {head}" if head[0] not in "aeiou" else f"an {head}"
    caption = ", ".join([head, *details]) if chance(0.7) else " ".join([head, *details])
    return Prompt(
        caption[0].upper() + caption[1:] if chance(0.2) else caption,
        song.bpm if complete or chance(0.55) else None,
        song.keyscale if complete or chance(0.55) else "",
        str(song.metre) if complete or chance(0.55) else "",
    )


def corpus() -> list[str]:
    """Prompts that between them hold every word and number that captions use."""
    from acestep.demo.music import TEMPI, compose

    random = np.random.default_rng(11)
    # Spelled-out nonsense must not earn tokens of its own.
    prompts = [describe(compose(random, 1.0), random) for _ in range(3000)]
    lines = [prompt.text(float(random.integers(1, 61))) for prompt in prompts]
    lines += [Prompt("").text(10, task) for task in INSTRUCTIONS for _ in range(20)]
    for bpm in TEMPI:
        lines += [Prompt(f"music {bpm} bpm", bpm).text(30)] * 3
    lines += ["# Languages\nunknown\n\n# Lyric\n<|endoftext|>"] * 50
    lines += [" ".join(MOODS), " ".join(str(metre) for metre in METRES)]
    return lines


def tempo_words(bpm: int, pick: Callable[[tuple[str, ...]], str]) -> str:
    """What people call a tempo."""
    slow, fast = ("slow", "slowly", "a slow tempo"), ("fast", "quick", "a fast tempo")
    middle = ("mid-tempo", "a moderate tempo", "medium tempo")
    words = slow if bpm < 92 else fast if bpm > 120 else middle
    return pick(words)

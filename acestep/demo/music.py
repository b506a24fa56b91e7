"""Small pieces of music as notes: harmony, melody, bass and drums from a random generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INSTRUMENTS = (
    "piano",
    "guitar",
    "organ",
    "strings",
    "flute",
    "trumpet",
    "bells",
    "marimba",
    "electric piano",
    "synth lead",
)
NEWCOMER = "vibraphone"
"""What training never hears, for adapters to learn."""
PATCHES = (*INSTRUMENTS, "bass", "kick", "snare", "hat", NEWCOMER)
KEY_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
METRES = (2, 3, 4, 6)
FRAME_RATE = 25
"""Notes begin on the VAE's frames, so that the same note always meets them in the same way."""
TEMPI = tuple(round(60 * FRAME_RATE / frames) for frames in range(21, 9, -1))
"""Beats a minute whose beat is a whole number of frames, 71 to 150."""
LEAD, CHORDS, MIDDLE, HATS = range(4)
"""Where a part stands in the stereo picture."""

_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 11)}
# Scale degrees of four bars; the tonic opens and the dominant leads back to it, so that a
# listener (and a chroma profile) hears the key.
_PROGRESSIONS = {
    "major": ((0, 3, 4, 0), (0, 0, 4, 0), (0, 3, 0, 4), (0, 3, 0, 0), (0, 5, 4, 0)),
    "minor": ((0, 3, 4, 0), (0, 0, 4, 0), (0, 3, 0, 4), (0, 3, 0, 0), (0, 5, 0, 0)),
}
# mode, slowest and fastest tempo, chance of eighth notes in the melody, chance of drums
MOODS: dict[str, tuple[str, int, int, float, float]] = {
    "happy": ("major", 100, 160, 0.5, 0.7),
    "calm": ("major", 70, 100, 0.15, 0.25),
    "epic": ("major", 80, 130, 0.3, 0.9),
    "playful": ("major", 95, 150, 0.6, 0.5),
    "sad": ("minor", 70, 100, 0.15, 0.3),
    "dark": ("minor", 75, 120, 0.25, 0.6),
    "tense": ("minor", 105, 160, 0.5, 0.7),
    "mysterious": ("minor", 75, 125, 0.3, 0.4),
}
_CENTRES = {"bells": 81, "flute": 79, "guitar": 74, "trumpet": 74}


@dataclass(frozen=True)
class Song:
    """A piece as notes.

    Attributes:
        instrument: what plays the melody and the broken chords, one of `INSTRUMENTS`.
        key: 0 is C.
        mode: major or minor.
        bpm: quarter notes a minute.
        metre: beats in a bar (6 is six eighths), one of `METRES`.
        mood: one of `MOODS`.
        drums: whether there are any.
        notes: `[n, 6]`: patch, MIDI pitch, start and length in seconds, loudness, place.
        seconds: length of the piece.
    """

    instrument: str
    key: int
    mode: str
    bpm: int
    metre: int
    mood: str
    drums: bool
    notes: np.ndarray
    seconds: float

    @property
    def keyscale(self) -> str:
        """The key as requests name it, for example `F# minor`."""
        return f"{KEY_NAMES[self.key]} {self.mode}"


def held_out(instrument: str, key: int, mode: str) -> bool:
    """Whether an instrument never plays in this key in the training material."""
    if instrument == NEWCOMER:
        return False
    number = INSTRUMENTS.index(instrument) * 24 + key + 12 * (mode == "minor")
    return number * 7919 % 1009 % 10 == 0


def compose(
    random: np.random.Generator, seconds: float, *, unseen: bool = False, instrument: str = ""
) -> Song:
    """A new piece.

    Args:
        random: decides everything that is not given.
        seconds: its length.
        unseen: take one of the combinations that `held_out` names, else none of them.
        instrument: of the melody; by default any.
    """
    while True:
        mood = str(random.choice(list(MOODS)))
        lead = instrument or str(random.choice(INSTRUMENTS))
        key = int(random.integers(12))
        mode, slowest, fastest, lively, drumming = MOODS[mood]
        if held_out(lead, key, mode) == unseen:
            break
    bpm = int(random.choice([tempo for tempo in TEMPI if slowest <= tempo <= fastest]))
    metre = int(random.choice(METRES, p=(0.12, 0.25, 0.55, 0.08)))
    drums = bool(random.random() < drumming)
    writer = _Writer(random, key, mode, round(60 * FRAME_RATE / bpm) / FRAME_RATE, metre, seconds)
    writer.accompany(lead)
    writer.sing(lead, lively)
    if drums:
        writer.drum()
    notes = np.array(writer.notes, dtype=np.float64).reshape(-1, 6)
    return Song(lead, key, mode, bpm, metre, mood, drums, notes, seconds)


class _Writer:
    """Writes the parts of one piece into a list of notes."""

    def __init__(
        self,
        random: np.random.Generator,
        key: int,
        mode: str,
        beat: float,
        metre: int,
        seconds: float,
    ) -> None:
        self.random, self.key, self.scale = random, key, _SCALES[mode]
        # In six-eight the pulse that is counted is the eighth note.
        self.pulse = beat / 2 if metre == 6 else beat
        self.pulses, self.seconds = metre, seconds
        self.bars = int(np.ceil(seconds / (self.pulse * metre)))
        choices = _PROGRESSIONS[mode]
        self.degrees = choices[int(random.integers(len(choices)))]
        self.notes: list[tuple[float, ...]] = []

    def pitch(self, degree: int) -> int:
        """Semitones above the octave's C of a scale degree; degrees may exceed an octave."""
        octave, step = divmod(degree, 7)
        return self.key + self.scale[step] + 12 * octave

    def add(
        self, patch: str, pitch: float, start: float, length: float, loudness: float, place: int
    ) -> None:
        start = round(start * FRAME_RATE) / FRAME_RATE
        if start < self.seconds - 0.05:
            row = (PATCHES.index(patch), pitch, start, length, loudness, place)
            self.notes.append(row)

    def accompany(self, patch: str) -> None:
        """Broken chords over a bass."""
        walking = self.random.random() < 0.4
        order = [(0, 1, 2, 1), (0, 2, 1, 2), (2, 1, 0, 1)][int(self.random.integers(3))]
        for bar in range(self.bars):
            start = bar * self.pulse * self.pulses
            root = self.degrees[bar % 4]
            # Voiced close together in the middle of the keyboard.
            tones = sorted(_near(self.pitch(root + step), 64) for step in (0, 2, 4))
            for beat in range(self.pulses):
                time = start + beat * self.pulse
                strong = beat == 0 or (self.pulses == 6 and beat == 3)
                tone = tones[order[beat % 4]]
                self.add(patch, tone, time, self.pulse, 0.45 if strong else 0.38, CHORDS)
                fifth = 4 if walking and beat % 2 and not strong else 0
                if strong or (walking and self.pulses != 6):
                    low = _near(self.pitch(root + fifth), 45)
                    length = self.pulse * (0.9 if walking else min(self.pulses, 3) - 0.1)
                    self.add("bass", low, time, length, 0.55 if strong else 0.4, MIDDLE)

    def sing(self, patch: str, lively: float) -> None:
        """A melody of four bars, played again with its last bar varied."""
        phrase = [self._figure(lively) for _ in range(2)]
        centre = _CENTRES.get(patch, 76)
        steps = [[int(self.random.integers(-1, 2)) for _ in range(12)] for _ in range(2)]
        for bar in range(self.bars):
            root = self.degrees[bar % 4]
            figure, moves = phrase[bar % 2], steps[bar % 2]
            time = bar * self.pulse * self.pulses
            degree = root + (0, 2, 4)[bar % 3 if bar % 4 else 0]
            for number, length in enumerate(figure):
                if number:
                    degree += moves[number % len(moves)]
                on_beat = abs(sum(figure[:number]) % 1.0) < 1e-6
                if on_beat and (degree - root) % 7 not in (0, 2, 4):
                    degree -= 1
                pitch = _near(self.pitch(degree), centre)
                loudness = 0.75 if number == 0 else 0.62
                self.add(patch, pitch, time, length * self.pulse * 0.95, loudness, LEAD)
                time += length * self.pulse

    def _figure(self, lively: float) -> list[float]:
        """Note lengths of one bar, in pulses."""
        lengths: list[float] = []
        left = float(self.pulses)
        while left > 0:
            draw = self.random.random()
            length = 0.5 if draw < lively else 1.0 if draw < lively + 0.6 * (1 - lively) else 2.0
            if length == 0.5:
                lengths += [0.5, 0.5]
                left -= 1.0
            else:
                length = min(length, left)
                lengths.append(length)
                left -= length
        return lengths

    def drum(self) -> None:
        """A steady pattern of the metre."""
        snare = {2: (1,), 3: (2,), 4: (1, 3), 6: (3,)}[self.pulses]
        halves = self.pulse > 0.42
        for bar in range(self.bars):
            for beat in range(self.pulses):
                time = (bar * self.pulses + beat) * self.pulse
                if beat in snare:
                    self.add("snare", 60, time, 0.2, 0.55, MIDDLE)
                elif beat == 0 or (self.pulses == 4 and beat == 2):
                    self.add("kick", 60, time, 0.3, 0.9, MIDDLE)
                self.add("hat", 60, time, 0.08, 0.25, HATS)
                if halves:
                    self.add("hat", 60, time + self.pulse / 2, 0.06, 0.15, HATS)


def _near(pitch: int, centre: int) -> int:
    """The pitch in the octave around a centre."""
    return (pitch - centre + 6) % 12 + centre - 6

"""What people ask the planner for, in their words, and what it should answer: captions in pairs.

The planner never takes a word away: what it writes is what it was told, and then what that
left open, in the words that the built-in checkpoint knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from acestep.demo.captions import (
    GENRES,
    KINDS,
    LETTERS,
    METRE_WORDS,
    MOOD_WORDS,
    NAMES,
    SCENES,
    tempo_words,
)
from acestep.demo.music import INSTRUMENTS, KEY_NAMES, METRES, MOODS, Song

LONGEST = 330
"""Characters of a caption that the planner is trained to copy."""

OTHER_NAMES = {"C#": "Db", "Eb": "D#", "F#": "Gb", "Ab": "G#", "Bb": "A#"}
"""The other spelling of black keys."""


@dataclass(frozen=True)
class Plan:
    """What a song is to be like: what the planner's block says, and what only its caption does.

    Attributes:
        instrument, mood, drums: as in `Song`.
        bpm, key, mode, metre: likewise; the tempo may be any from 30 to 300.
        duration: whole seconds.
    """

    instrument: str
    mood: str
    drums: bool
    bpm: int
    key: int
    mode: str
    metre: int
    duration: int

    @classmethod
    def of(cls, song: Song, duration: int) -> Plan:
        """The plan of a piece of music."""
        return cls(song.instrument, song.mood, song.drums, song.bpm, song.key, song.mode,
                   song.metre, duration)  # fmt: skip

    @property
    def keyscale(self) -> str:
        """The key as the block names it, for example `F# minor`."""
        return f"{KEY_NAMES[self.key]} {self.mode}"


@dataclass(frozen=True)
class Asked:
    """A caption as a user writes it.

    Attributes:
        caption: the words; may be empty.
        says: names of what they tell: bpm, tempo, keyscale, timesignature, duration,
            instrument, mood, drums.
    """

    caption: str
    says: frozenset[str]


@dataclass(frozen=True)
class Hint:
    """Words from outside the toy's world, and the music of its world that is nearest.

    Attributes:
        words: any of them means the same.
        moods, instruments: those that fit; empty where all do.
        slowest, fastest: beats a minute that fit.
        drums: whether there must be any; None where it does not matter.
    """

    words: tuple[str, ...]
    moods: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()
    slowest: int = 0
    fastest: int = 400
    drums: bool | None = None

    def fits(self, plan: Plan) -> bool:
        """Whether the words may describe the plan."""
        return (
            (not self.moods or plan.mood in self.moods)
            and (not self.instruments or plan.instrument in self.instruments)
            and self.slowest <= plan.bpm <= self.fastest
            and self.drums in (None, plan.drums)
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split("/"))


HINTS = (
    Hint(_words("rock/hard rock/punk/heavy metal/rock anthem/distorted guitars/grunge"),
         ("epic", "tense", "dark", "happy"), ("guitar", "synth lead"), 100, drums=True),
    Hint(_words("jazz/swing/bebop/bossa nova/blues/jazz club/smooth jazz"),
         (), ("piano", "trumpet", "electric piano", "guitar")),
    Hint(_words("techno/house/trance/edm/dance/club/drum and bass/dubstep/rave"),
         (), ("synth lead",), 110, drums=True),
    Hint(_words("lullaby/sleep/meditation/relaxing/soothing/yoga/spa/bedtime"),
         ("calm", "sad"), (), 0, 100, False),
    Hint(_words("lo-fi hip hop/lofi/chillhop/study beats/boom bap/hip-hop/trap"),
         ("calm", "sad", "mysterious", "dark"), ("electric piano", "piano"), 0, 105, True),
    Hint(_words("orchestra/symphonic/film score/soundtrack/violin/cello/string quartet/orchestral"),
         (), ("strings",)),
    Hint(_words("baroque/hymn/gospel/cathedral/fugue/harpsichord/accordion"), (), ("organ",)),
    Hint(_words("celtic/pan pipes/woodwind/recorder/clarinet/oboe/whistle/irish"), (), ("flute",)),
    Hint(_words("fanfare/big band/horns/saxophone/trombone/mariachi/french horn/sax"),
         (), ("trumpet",)),
    Hint(_words("music box/celesta/christmas/wind chimes/sleigh bells/carillon"), (), ("bells",)),
    Hint(_words("kalimba/xylophone/tropical/african/steel drums/caribbean"), (), ("marimba",)),
    Hint(_words("rhodes/soul/r&b/neo-soul/funk/wurlitzer/disco"), (), ("electric piano",)),
    Hint(_words("8-bit/chiptune/video game/synthwave/arpeggiator/retro wave/vaporwave"),
         (), ("synth lead",)),
    Hint(_words("country/bluegrass/banjo/ukulele/campfire/harp/mandolin/flamenco"),
         (), ("guitar",)),
    Hint(_words("ballad/romantic/love song/tender/sentimental"), ("calm", "sad"), (), 0, 100),
    Hint(_words("horror/haunted/suspense/spooky/sinister"), ("dark", "tense", "mysterious")),
    Hint(_words("party/upbeat/energetic/feel-good/workout/groovy/danceable"),
         ("happy", "playful", "epic"), (), 100, drums=True),
    Hint(_words("nostalgic/bittersweet/heartbreak/autumn/rainy day/wistful/longing"), ("sad",)),
    Hint(_words("battle/war/action/chase/boss fight/trailer"), ("epic", "tense"), (), 100,
         drums=True),
    Hint(_words("space/underwater/dreamscape/fantasy/ethereal/otherworldly"), ("mysterious",)),
    Hint(_words("circus/cartoon/comedy/children/silly/quirky"), ("playful",)),
    Hint(_words("mellow/soft/cozy/tranquil/serene/sunday morning"), ("calm",)),
    Hint(_words("inspiring/victory/glorious/majestic/soaring/hopeful"), ("epic",)),
    Hint(_words("sunny/summer vibes/carefree/optimistic/wedding"), ("happy",)),
)  # fmt: skip

NEUTRAL = _words(
    "vinyl crackle/female vocals/male vocals/choir/warm bass/reverb/808/lush pads/cassette tape/"
    "minimal/beautiful/simple/for a video/background music/80s/90s/in the style of the 70s/"
    "no vocals/instrumental/catchy chorus/long intro/slowly building/layered/analog/tape hiss/"
    "deep sub bass/live recording/studio quality/wide stereo/crisp/punchy/airy/raw/modern/"
    "vintage/old radio/podcast intro/for my girlfriend/about the ocean/about a lost dog/"
    "coffee shop/road trip/midnight/sunrise/mountains/desert/winter/spring/river/fire/moon/"
    "my birthday/a robot/an old castle/train station/walking home/first snow/the last dance"
)
"""Words that music of any kind may have."""

_FRAMES = (
    "{}", "{}", "{}", "{}", "i want {}", "make me {}", "something like {}", "please play {}",
    "a song with {}", "give me {}", "I need {}", "can you make {}?", "Write {}.",
)  # fmt: skip
_SPELLED = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
# Letters of other scripts, of which words are made that must be copied all the same.
_SCRIPTS = (
    "абвгдежзиклмнопрстуфхцчшыэюя", "αβγδεζηθικλμνξοπρστυφχψω", "áàâäãåçéèêëíîïñóôöõøúûüßœ",
    "的一是不了人我在有他这为之大来以个中上们", "あいうえおかきくけこさしすせそアイウエオカキク",
    "가나다라마바사아자차카타파하음악노래",
)  # fmt: skip


class Chooser:
    """Draws from one generator what a writer would decide."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def chance(self, probability: float) -> bool:
        """True in this share of calls."""
        return bool(self.random.random() < probability)

    def pick(self, words: Sequence[str]) -> str:
        """One of some words."""
        return str(words[int(self.random.integers(len(words)))])

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.random.integers(low, high + 1))

    def word(self) -> str:
        """A word that nobody knows, at times in another script."""
        letters = LETTERS if self.chance(0.85) else tuple(self.pick(_SCRIPTS))
        made = "".join(self.pick(letters) for _ in range(self.number(2, 9)))
        return made.capitalize() if self.chance(0.15) else made


def varied(plan: Plan, choose: Chooser) -> Plan:
    """A plan for words alone: tempo, key and mood need not go together, nor need music exist."""
    if choose.chance(0.3):
        low, high = (60, 180) if choose.chance(0.7) else (30, 300)
        plan = replace(plan, bpm=choose.number(low, high))
    if choose.chance(0.3):
        plan = replace(plan, key=choose.number(0, 11), mode=choose.pick(("major", "minor")))
    if choose.chance(0.2):
        plan = replace(plan, mood=choose.pick(tuple(MOODS)))
    if choose.chance(0.2):
        plan = replace(plan, drums=choose.chance(0.5))
    if choose.chance(0.2):
        plan = replace(plan, instrument=choose.pick(INSTRUMENTS))
    if choose.chance(0.2):
        plan = replace(plan, metre=int(choose.random.choice(METRES)))
    return plan


def ask(plan: Plan, choose: Chooser) -> Asked:
    """A caption that a user may have had in mind for this plan."""
    style = choose.random.random()
    if style < 0.04:
        return Asked("", frozenset())
    if style < 0.18:
        return _strange(plan, choose)
    return _plain(plan, choose) if style < 0.6 else _free(plan, choose)


def _plain(plan: Plan, choose: Chooser) -> Asked:
    """In the manner of the captions that the built-in checkpoint was trained on."""
    says: set[str] = set()
    details = []
    for name, probability in (("tempo", 0.35), ("bpm", 0.3), ("keyscale", 0.35),
                              ("timesignature", 0.2), ("drums", 0.4),
                              ("duration", 0.12)):  # fmt: skip
        if choose.chance(probability):
            says.add(name)
            details.append(_told(name, plan, choose, usual=True))
    if choose.chance(0.3):
        details.append(choose.pick(SCENES))
    if choose.chance(0.12):
        details.append(choose.word())
    choose.random.shuffle(details)
    words = []
    if choose.chance(0.8):
        says.add("mood")
        words.append(choose.pick(MOOD_WORDS[plan.mood]))
    if choose.chance(0.25):
        words.append(choose.pick(GENRES))
    if choose.chance(0.85):
        says.add("instrument")
        words.append(choose.pick(NAMES[plan.instrument]))
    if not words or choose.chance(0.4):
        words.append(choose.pick(KINDS))
    head = " ".join(words)
    if choose.chance(0.2):
        head = f"{'an' if head[0] in 'aeiou' else 'a'} {head}"
    text = (", " if choose.chance(0.7) else " ").join([head, *details])
    return Asked(text[0].upper() + text[1:] if choose.chance(0.25) else text, frozenset(says))


def _free(plan: Plan, choose: Chooser) -> Asked:
    """Known and unknown words in any order."""
    says: set[str] = set()
    parts = []
    shares = {"instrument": 0.6, "mood": 0.5, "tempo": 0.2, "bpm": 0.35, "keyscale": 0.4,
              "timesignature": 0.25, "drums": 0.25, "duration": 0.35}  # fmt: skip
    for name, probability in shares.items():
        if choose.chance(probability):
            says.add(name)
            parts.append(_told(name, plan, choose))
    parts += _outside(plan, choose, choose.number(0, 4))
    if not parts:
        parts = [choose.pick(KINDS)]
    choose.random.shuffle(parts)
    joint = choose.pick((", ", ", ", ", ", " ", " with ", " and ", "; ", ". "))
    text = choose.pick(_FRAMES).format(joint.join(parts))
    return Asked(text[:1].upper() + text[1:] if choose.chance(0.4) else text, frozenset(says))


def _strange(plan: Plan, choose: Chooser) -> Asked:
    """None of the toy's own words."""
    count = choose.number(1, 6) if choose.chance(0.8) else choose.number(7, 22)
    parts = _outside(plan, choose, count)
    text = choose.pick((", ", ", ", " ")).join(parts)
    text = text[:LONGEST].rstrip(" ,")
    return Asked(text[:1].upper() + text[1:] if choose.chance(0.3) else text, frozenset())


def _outside(plan: Plan, choose: Chooser, count: int) -> list[str]:
    """So many words from outside the toy's world that may describe the plan."""
    fitting = [hint for hint in HINTS if hint.fits(plan)]
    made = []
    for _ in range(count):
        draw = choose.random.random()
        if draw < 0.4 and fitting:
            made.append(choose.pick(fitting[choose.number(0, len(fitting) - 1)].words))
        elif draw < 0.65:
            made.append(choose.pick(NEUTRAL))
        elif draw < 0.75:
            made.append(choose.pick((*SCENES, *GENRES)))
        else:
            made.append(" ".join(choose.word() for _ in range(choose.number(1, 3))))
    return made


def _told(name: str, plan: Plan, choose: Chooser, usual: bool = False) -> str:
    """One thing about the plan in words; `usual` ones are those of `captions`."""
    if name == "instrument":
        return choose.pick(NAMES[plan.instrument])
    if name == "mood":
        return choose.pick(MOOD_WORDS[plan.mood])
    if name == "tempo":
        return tempo_words(plan.bpm, choose.pick)
    if name == "drums":
        words = ("with drums", "with a steady beat", "drums")
        return choose.pick(words if plan.drums else ("without drums", "no drums"))
    if name == "timesignature":
        return _metre_told(plan.metre, choose, usual)
    if name == "duration":
        return _duration_told(plan.duration, choose)
    if name == "bpm":
        forms = ("{} bpm", "{} BPM", "{}bpm", "at {} bpm", "tempo {}", "{} beats per minute")
        return (forms[0] if usual else choose.pick(forms)).format(plan.bpm)
    return f"in {plan.keyscale}" if usual else _key_told(plan, choose)


def _key_told(plan: Plan, choose: Chooser) -> str:
    tonic = KEY_NAMES[plan.key]
    if choose.chance(0.25):
        tonic = OTHER_NAMES.get(tonic, tonic)
    minor = plan.mode == "minor"
    scale = choose.pick(
        ("minor", "minor", "min", "Minor") if minor else ("major", "major", "maj", "Major")
    )
    if choose.chance(0.15):
        tonic = tonic.replace("#", " sharp").replace("b", " flat")
    elif choose.chance(0.1):
        tonic = tonic.replace("#", "♯").replace("b", "♭")
    if len(tonic) <= 2 and choose.chance(0.15):
        return f"in {tonic}m" if minor else f"in {tonic}"
    told = f"{tonic} {scale}"
    if choose.chance(0.15):
        told = told.lower()
    return choose.pick(("in {}", "in {}", "{}", "in the key of {}", "key {}")).format(told)


def _metre_told(metre: int, choose: Chooser, usual: bool) -> str:
    if usual or choose.chance(0.6):
        return choose.pick(METRE_WORDS[metre])
    more = {2: ("2/4", "march", "polka"), 3: ("3/4", "waltz", "three-four time"),
            4: ("4/4", "four on the floor", "four-four time"), 6: ("6/8", "jig", "6/8 time")}  # fmt: skip
    return choose.pick(more[metre])


def _duration_told(seconds: int, choose: Chooser) -> str:
    minutes, rest = divmod(seconds, 60)
    if not rest and choose.chance(0.7):
        number = _SPELLED.get(minutes, str(minutes)) if choose.chance(0.5) else str(minutes)
        return f"{number} minute{'' if minutes == 1 else 's'}"
    return choose.pick(("{} seconds", "{} sec", "{}s", "{} seconds long")).format(seconds)


def writable(text: str) -> str:
    """A caption without what the planner's block cannot hold.

    One line that begins with a letter or a digit; no brackets of tags, no colon but before a
    digit and no number sign but as a sharp (see `lm.grammar`).
    """
    text = " ".join(
        re.sub(r"[\x00-\x20\x7f-\xa0\u2028\u2029\u3000\ufeff\ufffe\uffff]", " ", text).split()
    )
    text = re.sub(r"[<>]|:(?!\d)|(?<![A-G])#", "", text)
    return re.sub(r"^[\W_]+", "", text).strip()


def answer(asked: Asked, plan: Plan) -> str:
    """The caption that the planner should write: the words it was told, and what they left open."""
    said, own = asked.says, writable(asked.caption)[:LONGEST].strip(" ,.;")
    more = []
    if "instrument" not in said or not own:
        more.append(f"{plan.mood} {plan.instrument}" if "mood" not in said else plan.instrument)
    elif "mood" not in said:
        more.append(plan.mood)
    if "drums" not in said:
        more.append("with drums" if plan.drums else "without drums")
    if not said & {"tempo", "bpm"}:
        more.append("slow" if plan.bpm < 92 else "fast" if plan.bpm > 120 else "mid-tempo")
    if "timesignature" not in said and plan.metre != 4:
        more.append(METRE_WORDS[plan.metre][0])
    return ", ".join([own, *more] if own else more)

"""What the planner learns from: prompts as they are at use, their answers, and pieces as codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from acestep.demo.captions import GENRES
from acestep.demo.music import Song, compose
from acestep.lm.cot import FIELDS, block
from acestep.lm.prompts import INSTRUCTIONS, Prompts
from acestep.training.planner.wording import OTHER_NAMES, Asked, Chooser, Plan, answer, ask, varied

CODES_PER_SECOND = 5
INSTRUMENTAL = "[Instrumental]"
PLAIN = "music"
"""What begins a caption that could be taken for another type by YAML."""
LENGTHS = (10, 30, 60, 120)
"""Seconds of the pieces."""
SHARES = (0.88, 0.1, 0.014, 0.006)
"""How many of the pieces are so long."""

_PER_PIECE = {"codes": 8, "understand": 3, "plan": 6, "format": 2, "inspire": 2}
_UNGUIDED = 0.1
_TONGUES = {
    "en": "love light night the of and you i we are my heart river dance sing away home time "
    "never all in your eyes with me when down again morning fire",
    "de": "ich du wir und die der das nicht nacht liebe herz mein dein immer licht zeit ohne",
    "fr": "je tu nous et la le les pas nuit amour coeur mon ton toujours lumière dans sans",
    "es": "yo tú y la el los no noche amor corazón mi tu siempre luz para sin donde quiero",
    "ru": "я ты мы и не ночь любовь мой твой свет всегда без где сердце домой",
    "zh": "我 你 爱 夜 光 心 的 不 在 一 里 风 梦 天 月",
    "ja": "わたし きみ の は を 夜 愛 光 心 に そら ゆめ",
    "ko": "나는 너를 사랑 밤 빛 마음 의 하늘 꿈 우리",
}
"""Words that lyrics are made of, by which their language is known."""


@dataclass(frozen=True)
class Row:
    """One conversation to learn from, codes left open.

    Attributes:
        kind: what the prompt is for: codes, understand, plan, format or inspire.
        piece: number of the piece whose codes it holds; -1 for none.
        tokens: int16 `[length]`; -1 - n stands for the piece's code n.
        start: where the answer begins.
        codes: how many codes it holds.
    """

    kind: str
    piece: int
    tokens: np.ndarray
    start: int
    codes: int


class Scribe:
    """Writes rows, with the prompts that the planner will meet.

    Args:
        tokenizer: see `text_tokenizer`; it need not know the codes.
        seed: of every choice.
    """

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.prompts = Prompts(tokenizer)
        self.choose = Chooser(np.random.default_rng(seed))
        # The codes are tokens of their own: what stands before and after them is too.
        before, after = self.prompts.text("understand", "\0").split("\0")
        self._before, self._after = self.ids(before), self.ids(after)
        self._writers: dict[str, Callable[[Song, int], Row]] = {
            "codes": self.codes,
            "understand": self.understand,
            "plan": self.plan,
            "format": self.format,
            "inspire": self.inspire,
        }

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        made: list[int] = self.prompts.tokenizer(text, add_special_tokens=False)["input_ids"]
        return made

    def rows(self, song: Song, piece: int) -> list[Row]:
        """All rows about a piece."""
        return [
            self._writers[kind](song, piece)
            for kind, times in _PER_PIECE.items()
            for _ in range(times)
        ]

    def codes(self, song: Song, piece: int) -> Row:
        """Phase 2: the block is there, the piece's codes follow."""
        plan = self._sounding(song)
        asked = ask(plan, self.choose)
        lyrics, language = self._lyrics()
        fields = self._fields(asked, plan, language)
        fields = {name: value for name, value in fields.items()
                  if name == "duration" or not self.choose.chance(0.12)}  # fmt: skip
        guided = self.choose.chance(_UNGUIDED)
        prompt = self.prompts.codes(asked.caption, lyrics, fields, guided=guided)
        head = list(prompt.unconditional or prompt.conditional)
        count = plan.duration * CODES_PER_SECOND
        return self._row("codes", piece, [*head, *_places(count), *self.ids("<|im_end|>")],
                         len(head), count)  # fmt: skip

    def understand(self, song: Song, piece: int) -> Row:
        """A piece's codes are described."""
        plan = Plan.of(song, self._duration(song, least=10))
        count = plan.duration * CODES_PER_SECOND
        fields = self._fields(Asked("", frozenset()), plan, "unknown")
        head = [*self._before, *_places(count), *self._after]
        return self._row("understand", piece, [*head, *self._described(fields, INSTRUMENTAL)],
                         len(head), count)  # fmt: skip

    def plan(self, song: Song, piece: int) -> Row:
        """Phase 1: a caption gets its block."""
        plan, asked = self._asked(song)
        lyrics, language = self._lyrics()
        fields = self._fields(asked, plan, language)
        if self.choose.chance(0.2):
            dropped = {"caption"} if self.choose.chance(0.5) else {"caption", "language"}
            fields = {name: value for name, value in fields.items() if name not in dropped}
        prompt = self.prompts.plan(asked.caption, lyrics, guided=self.choose.chance(_UNGUIDED))
        head = list(prompt.unconditional or prompt.conditional)
        return self._row("plan", -1, [*head, *self.ids(_plain_block(fields))], len(head))

    def format(self, song: Song, piece: int) -> Row:
        """Caption and lyrics are rewritten: the words stay, what they left open is added."""
        plan, asked = self._asked(song)
        lyrics, language = self._lyrics()
        caption = asked.caption or ("NO USER INPUT" if self.choose.chance(0.5) else "")
        fields = self._fields(asked, plan, language)
        head = list(self.prompts.format(caption, lyrics).conditional)
        tail = self._described(fields, lyrics or INSTRUMENTAL)
        return self._row("format", -1, [*head, *tail], len(head))

    def inspire(self, song: Song, piece: int) -> Row:
        """A query becomes a sample; the toy does not sing."""
        plan, asked = self._asked(song)
        if not asked.caption:
            asked = replace(asked, caption=self.choose.pick(GENRES))
        fields = self._fields(asked, plan, "unknown")
        head = list(self.prompts.inspire(asked.caption, self.choose.chance(0.5)).conditional)
        return self._row("inspire", -1, [*head, *self._described(fields, INSTRUMENTAL)], len(head))

    def _row(self, kind: str, piece: int, tokens: Sequence[int], start: int, codes: int = 0) -> Row:
        return Row(kind, piece, np.array(tokens, np.int16), start, codes)

    def _described(self, fields: dict[str, Any], lyrics: str) -> list[int]:
        return self.ids(f"{_plain_block(fields)}\n\n# Lyric\n{lyrics}<|im_end|>")

    def _asked(self, song: Song) -> tuple[Plan, Asked]:
        """A plan near the piece's, that need not be playable, and a caption for it."""
        plan = varied(Plan.of(song, self._likely_duration()), self.choose)
        return plan, ask(plan, self.choose)

    def _sounding(self, song: Song) -> Plan:
        """The piece's plan as a user may have given it, with the tempo roughly said."""
        plan = Plan.of(song, self._duration(song))
        draw = self.choose.random.random()
        if draw < 0.35:
            plan = replace(
                plan, bpm=round(plan.bpm * float(self.choose.random.uniform(0.965, 1.035)))
            )
        elif draw < 0.41 and not 68 <= plan.bpm / 2 <= 156:
            plan = replace(plan, bpm=plan.bpm // 2)
        elif draw < 0.47 and plan.bpm * 2 > 156:
            plan = replace(plan, bpm=plan.bpm * 2)
        return plan

    def _fields(self, asked: Asked, plan: Plan, language: str) -> dict[str, Any]:
        """The block's fields."""
        fields = {
            "bpm": plan.bpm,
            "caption": answer(asked, plan),
            "duration": plan.duration,
            "keyscale": plan.keyscale,
            "language": language,
            "timesignature": str(plan.metre),
        }
        assert tuple(fields) == FIELDS
        return fields

    def _duration(self, song: Song, least: int = 5) -> int:
        """Seconds of a piece, mostly all of them, at times its beginning."""
        longest = int(song.seconds)
        if self.choose.chance(0.75):
            return longest
        shorter = max([0, *(other for other in LENGTHS if other < longest)])
        return self.choose.number(max(least, shorter), longest)

    def _likely_duration(self) -> int:
        """Seconds that a user may want."""
        if self.choose.chance(0.75):
            return int(self.choose.pick(("10", "15", "20", "20", "30", "30", "30", "45", "60")))
        return (
            self.choose.number(10, 120) if self.choose.chance(0.8) else self.choose.number(120, 600)
        )

    def _lyrics(self) -> tuple[str, str]:
        """Lyrics and their language."""
        draw = self.choose.random.random()
        if draw < 0.8:
            return ("" if draw < 0.4 else INSTRUMENTAL), "unknown"
        choose = self.choose
        language = "en" if choose.chance(0.55) else choose.pick(tuple(_TONGUES))
        words = _TONGUES[language].split()
        lines = []
        for number in range(choose.number(1, 6)):
            if number == 0 and choose.chance(0.5):
                lines.append(
                    choose.pick(("[Verse]", "[verse]", "[Verse 1]", "[Chorus]", "[Intro]"))
                )
            made = [choose.pick(words) if choose.chance(0.85) else choose.word()
                    for _ in range(choose.number(3, 7))]  # fmt: skip
            line = " ".join(made)
            lines.append(line[0].upper() + line[1:] if choose.chance(0.6) else line)
        return "\n".join(lines), language


def _plain_block(fields: dict[str, Any]) -> str:
    """The block, whose caption is a plain scalar: what YAML must quote, the grammar refuses."""
    text = block(fields)
    if "\ncaption: '" in text or '\ncaption: "' in text:
        text = block({**fields, "caption": f"{PLAIN}, {fields['caption']}"})
    return text


def _places(count: int) -> range:
    return range(-1, -1 - count, -1)


@dataclass
class Chunk:
    """Some pieces of one length, and all that is written about them.

    Attributes:
        songs: the pieces.
        rows: their `piece` counts from this chunk's first.
    """

    songs: list[Song]
    rows: list[Row] = field(default_factory=list)


def chunk(seed: int, count: int, seconds: float, words: int, unseen: bool = False) -> Chunk:
    """Compose pieces and write about them; everything follows from the arguments.

    Args:
        seed: of the pieces.
        count: how many.
        seconds: of each.
        words: seed of what is written, apart from the music.
        unseen: compose in keys that training must not use.
    """
    random = np.random.default_rng(seed)
    songs = [compose(random, seconds, unseen=unseen) for _ in range(count)]
    scribe = Scribe(text_tokenizer(), words)
    return Chunk(songs, [row for n, song in enumerate(songs) for row in scribe.rows(song, n)])


@lru_cache(maxsize=1)
def text_tokenizer() -> Any:
    """The planner's tokenizer without the codes, which it would take a second to add."""
    from acestep.lm.demo import planner_tokenizer

    return planner_tokenizer(codes=False)


def corpus() -> Iterator[str]:
    """Texts that between them hold what prompts and answers are made of."""
    random = np.random.default_rng(13)
    choose = Chooser(random)
    for _ in range(4000):
        plan = varied(Plan.of(compose(random, 1.0), choose.number(5, 120)), choose)
        asked = ask(plan, choose)
        fields = {"bpm": plan.bpm, "caption": answer(asked, plan), "duration": plan.duration,
                  "keyscale": plan.keyscale, "language": "unknown",
                  "timesignature": str(plan.metre)}  # fmt: skip
        yield f"# Caption\n{asked.caption}\n\n# Lyric\n{INSTRUMENTAL}\n"
        yield block(fields)
    for name, other in OTHER_NAMES.items():
        yield f"in {name} major in {other} minor"
    for _ in range(50):
        yield from ("system\n# Instruction\n", "user\n", "assistant\n", "instrumental: true",
                    "instrumental: false", *INSTRUCTIONS.values())  # fmt: skip

"""What the language model is told to write, and what is read out of its text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acestep.lm import cot, grammar
from acestep.lm.backend import Backend, CodeJob, OnToken, TextJob
from acestep.lm.prompts import Prompt, Prompts
from acestep.lm.sampling import Sampling
from acestep.song.request import CODES_PER_SECOND, DEFAULT_DURATION

_FREE_TEXT_LIMIT = 1024
# Tokens that a block, and one with lyrics, have as a rule: far fewer than the grammar lets through.
_BLOCK_TOKENS, _LYRIC_TOKENS = 80, 500


@dataclass(frozen=True)
class Wish:
    """What a batch of songs is to be like.

    Attributes:
        caption, lyrics: what the music is like, and its words.
        negative_prompt: caption of the unconditional prompt.
        sampling: how tokens are chosen.
        seeds: one an item.
    """

    caption: str
    lyrics: str
    negative_prompt: str
    sampling: Sampling
    seeds: Sequence[int]


@dataclass(frozen=True)
class Writer:
    """One engine at work.

    Attributes:
        engine: the loaded model.
        max_duration: seconds; most that a grammar lets through.
        caption_lines, line_length, lyric_lines: most free text that it lets through.
        report: called after each token; may raise to stop.
    """

    engine: Backend
    max_duration: int
    caption_lines: int
    line_length: int
    lyric_lines: int
    report: OnToken

    def plan(
        self, wish: Wish, known: dict[str, Any], wanted: Collection[str], constrained: bool
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Phase 1: the fields of each item, and the text they were read from.

        Args:
            wish: the songs.
            known: fields that are used as they are.
            wanted: fields that the model may add.
            constrained: hold the text to the grammar.
        """
        fields = [name for name in cot.FIELDS if name in wanted or name in known]
        if all(name in known for name in fields):
            return [dict(known) for _ in wish.seeds], [cot.block(known) for _ in wish.seeds]
        prompt = self._prompts.plan(
            wish.caption,
            wish.lyrics,
            guided=wish.sampling.guided,
            negative_prompt=wish.negative_prompt,
        )
        shape = self._shape(fields, known) if constrained else None
        texts = self._write(prompt, wish.seeds, wish.sampling, shape)
        return [{**cot.parse(text)[0], **known} for text in texts], texts

    def codes(self, wish: Wish, plans: Sequence[dict[str, Any]]) -> list[str]:
        """Phase 2: the audio codes of each item, as text; a plan without a length gets one."""
        counts, prompts = [], []
        for plan in plans:
            plan.setdefault("duration", int(DEFAULT_DURATION))
            counts.append(max(1, round(plan["duration"] * CODES_PER_SECOND)))
            prompts.append(
                self._prompts.codes(
                    wish.caption,
                    wish.lyrics,
                    plan,
                    guided=wish.sampling.guided,
                    negative_prompt=wish.negative_prompt,
                )
            )
        made = self.engine.codes(CodeJob(prompts, wish.seeds, wish.sampling, counts), self.report)
        return ["".join(f"<|audio_code_{code}|>" for code in row) for row in made]

    def describe(
        self,
        make_prompt: Callable[[Prompts], Prompt],
        known: Mapping[str, Any],
        sampling: Sampling,
        constrained: bool,
        seed: int,
    ) -> dict[str, Any]:
        """A whole block, and the `lyrics` after it."""
        shape = self._shape(cot.FIELDS, known, self.lyric_lines) if constrained else None
        prompt = make_prompt(self._prompts)
        (text,) = self._write(prompt, [seed], sampling, shape, lyrics=True)
        return {**cot.parse(text)[0], **known, "lyrics": cot.parse_lyrics(text)}

    def _write(
        self,
        prompt: Prompt,
        seeds: Sequence[int],
        sampling: Sampling,
        shape: grammar.Shape | None,
        lyrics: bool = False,
    ) -> list[str]:
        tokens = self.engine.tokens
        end = tokens.end if lyrics else tokens.think_close
        rules, limit = None, _FREE_TEXT_LIMIT
        if shape is not None:
            rules = grammar.lark(shape, tokens.think_open, tokens.think_close, tokens.end)
            limit = grammar.most_tokens(shape)
        job = TextJob([prompt] * len(seeds), seeds, sampling, rules, end, limit)
        expected = _LYRIC_TOKENS if lyrics else _BLOCK_TOKENS
        made = self.engine.text(job, lambda done, _: self.report(done, _likely(done, expected)))
        decode = self.engine.tokenizer.decode
        return [decode(ids, skip_special_tokens=False) for ids in made]

    def _shape(
        self, fields: Sequence[str], known: Mapping[str, Any], lyric_lines: int | None = None
    ) -> grammar.Shape:
        return grammar.Shape(
            fields=fields,
            known=known,
            max_duration=self.max_duration,
            caption_lines=self.caption_lines,
            line_length=self.line_length,
            lyric_lines=lyric_lines,
        )

    @property
    def _prompts(self) -> Prompts:
        return Prompts(self.engine.tokenizer)


def _likely(done: int, expected: int) -> int:
    """How many tokens a text will have, told when some are written: the bar keeps moving."""
    beyond = max(done / expected, 1.0)
    return round(max(expected, done) / (1 - 0.1 / beyond))

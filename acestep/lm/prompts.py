"""What the language model is told for each use, through its tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acestep.errors import CheckpointError
from acestep.lm.cot import CLOSE, OPEN, block, without_control_tokens

NO_NEGATIVE_PROMPT = "NO USER INPUT"
"""As a negative prompt: there is none."""

NO_CAPTION = "NO USER INPUT"
"""As a caption to rewrite: there is none."""

INSTRUCTIONS = {
    "generate": "Generate audio semantic tokens based on the given conditions:",
    "understand": (
        "Understand the given musical conditions and describe the audio semantics accordingly:"
    ),
    "inspire": "Expand the user's input into a more detailed and specific musical description:",
    "format": "Format the user's input into a more detailed and specific musical description:",
}


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt and, for guidance, of its unconditional counterpart."""

    conditional: Sequence[int]
    unconditional: Sequence[int] | None = None


class Prompts:
    """Builds prompts with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def plan(
        self,
        caption: str,
        lyrics: str,
        *,
        guided: bool = False,
        negative_prompt: str = NO_NEGATIVE_PROMPT,
    ) -> Prompt:
        """Phase 1 of generation: the model is to write the block.

        The unconditional prompt has the negative prompt as caption, or no caption section.
        """
        user = music_message(caption, lyrics)
        other = _negative(negative_prompt)
        plain = music_message(other, lyrics) if other else _lyric_section(lyrics) + "\n"
        unconditional = self._ids("generate", plain) if guided else None
        return Prompt(self._ids("generate", user), unconditional)

    def codes(
        self,
        caption: str,
        lyrics: str,
        fields: Mapping[str, Any],
        *,
        guided: bool = False,
        negative_prompt: str = NO_NEGATIVE_PROMPT,
    ) -> Prompt:
        """Phase 2 of generation: the block is written, the audio codes follow.

        The unconditional prompt has an empty block, and the negative prompt as caption if
        there is one.
        """
        user = music_message(caption, lyrics)
        conditional = self._ids("generate", user, block(fields))
        if not guided:
            return Prompt(conditional)
        other = music_message(_negative(negative_prompt) or caption, lyrics)
        return Prompt(conditional, self._ids("generate", other, f"{OPEN}\n{CLOSE}"))

    def understand(self, audio_codes: str) -> Prompt:
        """Audio codes are to be described."""
        return Prompt(self._ids("understand", audio_codes))

    def inspire(self, query: str, instrumental: bool) -> Prompt:
        """A query is to become a sample."""
        query = without_control_tokens(query)
        return Prompt(self._ids("inspire", f"{query}\n\ninstrumental: {str(instrumental).lower()}"))

    def format(self, caption: str, lyrics: str) -> Prompt:
        """Caption and lyrics are to be rewritten."""
        return Prompt(self._ids("format", music_message(caption, lyrics).removesuffix("\n")))

    def text(self, use: str, user: str, assistant: str | None = None) -> str:
        """A conversation as text; with the assistant's words it stays open for more.

        Raises:
            CheckpointError: the tokenizer's chat template is missing or damaged.
        """
        messages = [
            {"role": "system", "content": f"# Instruction\n{INSTRUCTIONS[use]}\n\n"},
            {"role": "user", "content": user},
        ]
        if assistant is not None:
            messages.append({"role": "assistant", "content": assistant})
        import jinja2

        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=assistant is None
            )
        except (ValueError, jinja2.TemplateError) as error:
            raise CheckpointError(
                f"the language model's chat template cannot be used ({error})"
            ) from None
        return text if assistant is None or text.endswith("\n") else text + "\n"

    def _ids(self, use: str, user: str, assistant: str | None = None) -> list[int]:
        text = self.text(use, user, assistant)
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False).input_ids]


def music_message(caption: str, lyrics: str) -> str:
    """The user message of generation."""
    caption = without_control_tokens(caption)
    return f"# Caption\n{caption}\n\n{_lyric_section(lyrics)}\n"


def _lyric_section(lyrics: str) -> str:
    return f"# Lyric\n{without_control_tokens(lyrics)}"


def _negative(prompt: str) -> str:
    """The negative prompt, or nothing."""
    return "" if prompt.strip() in ("", NO_NEGATIVE_PROMPT) else prompt

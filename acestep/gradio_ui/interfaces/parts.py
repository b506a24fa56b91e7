"""Components by name, each labelled from the catalogue, and labelled anew in another language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from acestep.gradio_ui.texts import Texts, texts

Choices = Callable[[Texts], list[tuple[str, Any]]]


class Parts:
    """The components of the page in the making.

    Args:
        words: the first language.
    """

    def __init__(self, words: Texts) -> None:
        self.words = words
        self.made: dict[str, Any] = {}
        self._choices: dict[str, Choices] = {}

    def __getitem__(self, name: str) -> Any:
        """A component by its name."""
        return self.made[name]

    def pick(self, *names: str) -> list[Any]:
        """Several components by their names."""
        return [self.made[name] for name in names]

    def add(self, name: str, kind: Any, *, choices: Choices | None = None, **settings: Any) -> Any:
        """Make a component whose texts are those of its name.

        Args:
            name: in the catalogue, and in what `create_generation_section` returns.
            kind: the class of gradio.
            choices: makes what it offers from a language's words.
            settings: of the component.
        """
        if choices is not None:
            self._choices[name] = choices
            settings["choices"] = choices(self.words)
        elem_id = f"acestep-{name.replace('_', '-')}"
        made = kind(**self._texts(name, kind, self.words), elem_id=elem_id, **settings)
        self.made[name] = made
        return made

    def relabelled(self, language: str) -> dict[Any, Any]:
        """Every labelled component's update for another language."""
        words, updates = texts(language), {}
        for name, part in self.made.items():
            changed: dict[str, Any] = self._texts(name, type(part), words)
            if name in self._choices:
                changed["choices"] = self._choices[name](words)
            if changed:
                updates[part] = gr.update(**changed)
        return updates

    def offer(self, name: str, choices: Choices) -> None:
        """Let a component offer something else from now on."""
        self._choices[name] = choices

    @property
    def labelled(self) -> list[Any]:
        """The components that `relabelled` updates."""
        return list(self.relabelled(self.words.language))

    def _texts(self, name: str, kind: Any, words: Texts) -> dict[str, str]:
        label = words.get(f"{name}.label")
        if label is None:
            return {}
        if issubclass(kind, gr.Button):
            return {"value": label}
        found = {"label": label}
        for text in ("info", "placeholder"):
            if (value := words.get(f"{name}.{text}")) is not None:
                found[text] = value
        return found


def same_words(values: Sequence[str]) -> Choices:
    """Choices that are written alike in every language."""
    return lambda words: [(value, value) for value in values]


def translated(prefix: str, values: Sequence[str]) -> Choices:
    """Choices whose labels are in the catalogue."""
    return lambda words: [(words(f"{prefix}.{value}"), value) for value in values]


def open_or(values: Sequence[str]) -> Choices:
    """Choices of which the first, empty, leaves the matter open."""
    return lambda words: [(words("choice.open"), ""), *((value, value) for value in values)]

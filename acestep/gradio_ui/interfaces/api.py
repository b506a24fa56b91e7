"""The HTTP API, version 1: what gradio's clients may call, each with its key checked."""

from __future__ import annotations

import gradio as gr

from acestep.gradio_ui.studio import Studio


def add(studio: Studio) -> None:
    """Declare the endpoints; called inside the page's `gr.Blocks`."""


__all__ = ["add", "gr"]

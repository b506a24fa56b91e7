"""The whole page: the section in a `gr.Blocks`, its looks, its script, its languages."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import gradio as gr

from acestep.gradio_ui.interfaces import api, generation
from acestep.gradio_ui.studio import Studio
from acestep.gradio_ui.texts import texts

# The system's own typefaces: nothing is fetched.
_FONT = ("ui-sans-serif", "system-ui", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif")
_MONO = ("ui-monospace", "Cascadia Mono", "Menlo", "DejaVu Sans Mono", "monospace")


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio, with the API where that is enabled."""
    words = texts(studio.options.language)
    with gr.Blocks(title=words("page.title"), analytics_enabled=False, fill_width=True) as blocks:
        generation.create_generation_section(None, None, {"studio": studio}, words.language)
        if studio.options.enable_api:
            api.Api(studio).add()
    return blocks


def looks() -> dict[str, Any]:
    """Theme, style and script, as `Blocks.launch` takes them."""
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        font=[gr.themes.Font(name) for name in _FONT],
        font_mono=[gr.themes.Font(name) for name in _MONO],
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        # Small print at a contrast of at least 4.5 to 1, in light and in dark.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
    )
    head = f"<style>{_asset('window.css')}</style><script>{_asset('page.js')}</script>"
    return {"theme": theme, "css": _asset("page.css"), "head": head}


def _asset(name: str) -> str:
    return files("acestep.gradio_ui").joinpath("assets", name).read_text(encoding="utf-8")

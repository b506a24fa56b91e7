"""The service panel: what is loaded where, and the controls that change it."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from acestep.device import (
    BACKEND_CHOICES,
    DEVICE_CHOICES,
    ENGINE_CHOICES,
    QUANTIZATIONS,
    describe_devices,
    quantization_of,
    resolve,
)
from acestep.errors import RequestError
from acestep.gradio_ui.engines import limits_of
from acestep.gradio_ui.interfaces.parts import Choices, Parts, same_words, translated
from acestep.gradio_ui.settings import OFFLOADS, Choice, first_backend
from acestep.gradio_ui.studio import Studio
from acestep.gradio_ui.texts import Texts

CHOICE = ("model", "device", "backend", "lm_model", "offload", "engine", "quantize")
"""The components that make a `Choice`."""

WHOLE = "none"
"""What the panel calls weights in no few bits."""


def build(parts: Parts, studio: Studio) -> None:
    """Make the panel's components."""
    first, fixed = studio.choice, studio.options.service_mode
    backend = first.backend or first_backend(first.device, first.engine)
    with parts.add("service", gr.Accordion, open=False):
        parts.made["service_status"] = gr.HTML(
            status(studio, parts.words, first.device), elem_id="acestep-service-status"
        )
        with gr.Row():
            parts.add("model", gr.Dropdown, choices=same_words(_with(studio.engines.models(), first.model)), value=first.model, interactive=not fixed, min_width=120)  # fmt: skip
            parts.add("device", gr.Dropdown, choices=devices(), value=first.device, interactive=not fixed, min_width=120)  # fmt: skip
            parts.add("engine", gr.Dropdown, choices=same_words(ENGINE_CHOICES), value=first.engine, interactive=not fixed, min_width=120)  # fmt: skip
            parts.add("offload", gr.Dropdown, choices=translated("offload", OFFLOADS), value=first.offload, interactive=not fixed, min_width=120)  # fmt: skip
            parts.add("quantize", gr.Dropdown, choices=translated("quantize", (WHOLE, *QUANTIZATIONS)), value=first.quantize or WHOLE, interactive=not fixed, min_width=120)  # fmt: skip
        with gr.Row():
            parts.add("lm_model", gr.Dropdown, choices=same_words(_with(studio.engines.planners(), first.lm_model)), value=first.lm_model, interactive=not fixed, min_width=120)  # fmt: skip
            parts.add("backend", gr.Dropdown, choices=same_words(BACKEND_CHOICES), value=backend, interactive=not fixed, min_width=120)  # fmt: skip
            parts.add(
                "with_planner", gr.Checkbox, value=False, interactive=not fixed, min_width=120
            )
        with gr.Row():
            parts.add("start", gr.Button, variant="primary", interactive=not fixed, min_width=120)
            parts.add("stop", gr.Button, interactive=not fixed, min_width=120)


def chosen(values: tuple[Any, ...], start: Choice | None = None) -> Choice:
    """A `Choice` from the values of the panel.

    Args:
        values: of `CHOICE`.
        start: says the rest, as the command line did.

    Raises:
        RequestError: a value is no text, or no kind of few bits.
    """
    if not all(isinstance(value, str) for value in values):
        raise RequestError("a choice in the service panel is missing; choose one in each list")
    model, device, backend, lm_model, offload, engine, quantize = values
    return Choice(
        model or "auto",
        device,
        backend,
        lm_model or "auto",
        offload,
        flash_attention=start is not None and start.flash_attention,
        quantize=quantization_of(quantize),
        engine=engine or "auto",
    )


def devices() -> Choices:
    """The device choices, with those that are absent here marked as such."""
    present = {info.name: info.available for info in describe_devices()}

    def offered(words: Texts) -> list[tuple[str, str]]:
        return [
            (name if present.get(name, True) else words("device.absent", name=name), name)
            for name in DEVICE_CHOICES
        ]

    return offered


def status(studio: Studio, words: Texts, device: str) -> str:
    """The status lines as HTML: what is loaded where, memory, what `auto` picks, the limits."""
    loaded = studio.engines.lines()
    lines = [words("status.loaded", what=line) for line in loaded] or [words("status.idle")]
    try:
        used, total = studio.engines.memory(device)
        tier = limits_of(device)
        lines.append(words("status.memory", used=f"{used:.1f}", total=f"{total:.1f}"))
        policy = resolve(device)
        if device == "auto":
            lines.append(words("status.auto", device=policy.name, reason=policy.reason))
        with_lm = studio.engines.llm_loaded
        lines.append(
            words(
                "status.limits",
                seconds=f"{tier.max_duration(with_lm):g}",
                songs=tier.max_batch_size(with_lm),
                device=policy.name,
                tier=tier.tier,
            )
        )
    except RequestError as error:
        lines.append(str(error))
    if studio.options.service_mode:
        lines.append(words("status.fixed"))
    state = "ready" if studio.engines.dit_loaded else "idle"
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<div role="status"><ul class="status {state}">{items}</ul></div>'


def _with(values: list[str], value: str) -> list[str]:
    return values if value in values else [value, *values]

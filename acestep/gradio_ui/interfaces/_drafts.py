"""What stood in the form when its page was left: read back as carefully as any stranger's words."""

from __future__ import annotations

import json
from typing import Any

from acestep.errors import RequestError
from acestep.gradio_ui.interfaces import form
from acestep.gradio_ui.song_request import SongRequest

KEPT = (*form.FIELDS, "mode", "query", "before")
"""The components whose values outlast a reload."""

_NAME = "acestep_draft"
_MOST_CHARS = 200_000

# The page's first values must not replace what is kept before that was read.
SAVE_JS = f"""
(...values) => {{
  if (!window.acestepRead) return;
  try {{ localStorage.setItem('{_NAME}', JSON.stringify(values)); }} catch (full) {{ /* not kept */ }}
}}
"""
READ_JS = f"""
(language) => {{
  window.acestepRead = true;
  // Until a visitor chooses, the page speaks the language that it was started with.
  if (!document.cookie.includes('acestep_language=')) document.documentElement.lang = language;
  let kept = '';
  try {{ kept = localStorage.getItem('{_NAME}') || ''; }} catch (forbidden) {{ /* none */ }}
  return [language, kept];
}}
"""


def read(text: str, allowed: dict[str, list[Any]]) -> dict[str, Any]:
    """The values that are still good, by component.

    Args:
        text: the kept values, as JSON, in the order of `KEPT`.
        allowed: what components with a list of choices offer.
    """
    try:
        values = json.loads(text) if len(text) <= _MOST_CHARS else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, list) or len(values) != len(KEPT):
        return {}
    given = dict(zip(KEPT, values, strict=True))
    return {
        name: value
        for name, value in given.items()
        if value is not None and _fits(name, value) and value in allowed.get(name, [value])
    }


def _fits(name: str, value: Any) -> bool:
    if name in ("query", "before", "mode"):
        return isinstance(value, str)
    if name in ("source_file", "reference_file"):
        # What is kept of an upload is where the browser got it; it is chosen anew.
        return False
    try:
        SongRequest.of({name: value})
    except RequestError:
        return False
    # A number that came as a word would be one in the form too.
    return isinstance(value, str | int | float | bool)

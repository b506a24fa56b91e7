"""The HTTP application of a page, which gradio makes four times where one is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_apps() -> Iterator[None]:
    """Build a page, whose HTTP application is made when it is launched and not before.

    gradio makes one when a page is begun, when it is complete and when its queue is set, each of
    which takes a third of a second and is thrown away. `launch` makes the one that serves.
    """
    from gradio.routes import App

    plain = App.create_app

    def none(*_: Any, **__: Any) -> None:
        return None

    App.create_app = staticmethod(none)
    try:
        yield
    finally:
        App.create_app = staticmethod(plain)

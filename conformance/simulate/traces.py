"""Takes this package's frames out of tracebacks, so that they end in torch's or the user's line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

_HERE = str(Path(__file__).parent)


def trimmed(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without our frames; as it is where nothing else would remain."""
    kept = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_HERE):
            kept.append(trace)
        trace = trace.tb_next
    below = None
    for entry in reversed(kept):
        below = TracebackType(below, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return below


def fold() -> None:
    """Has uncaught exceptions of this process printed without our frames."""
    plain = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        chain: BaseException | None = error
        while chain is not None:
            chain.__traceback__ = trimmed(chain.__traceback__) or chain.__traceback__
            chain = chain.__cause__ or chain.__context__
        plain(kind, error, error.__traceback__)

    sys.excepthook = shown

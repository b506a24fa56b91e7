"""The family of errors that `acestep` raises, one kind for each party that can mend it."""

from __future__ import annotations


class AceStepError(Exception):
    """Base of every error raised on purpose; its message is one line meant for the user."""


class RequestError(AceStepError):
    """The request cannot be served as it stands: a bad value, file, path or combination."""


class DeviceError(RequestError):
    """The device asked for is unknown or not present on this machine."""


class CheckpointError(RequestError):
    """A checkpoint is missing, incomplete, damaged or does not fit the architecture."""


class GenerationError(AceStepError):
    """Generation started and failed: the model's output cannot be used."""


class TrainingError(AceStepError):
    """Training cannot go on: the loss is not finite, or memory does not suffice."""


class CancelledError(AceStepError):
    """The caller asked for the generation to stop."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

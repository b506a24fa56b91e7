"""The checkpoints that clients may ask for, by the names that they know."""

from __future__ import annotations

from pathlib import Path

from acestep.checkpoint import finding
from acestep.checkpoint.names import short_name
from acestep.errors import RequestError
from acestep.server.options import ServerOptions
from acestep.song import normalise

PREFIX = "acestep/"
"""What chat clients put before a checkpoint's name."""

_DEFAULT = ("", "auto", "default", "acestep")


class Catalogue:
    """Names to what `finding.find` is asked for; nothing is loaded.

    Args:
        options: of the service.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options, self._found = options, dict[str, str]()
        for model in options.models:
            self._found.setdefault(_name(model, options.checkpoint), model)
        if not options.models:
            local = finding.local_checkpoints(options.checkpoint)
            if local:
                self._found[finding.find("auto", options.checkpoint).name] = "auto"
            self._found.update({one.name: one.name for one in local if one.name not in self._found})
            self._found.setdefault("demo", "demo")

    @property
    def names(self) -> list[str]:
        """All of them, the default first."""
        return list(self._found)

    @property
    def default(self) -> str:
        """The one that is used where none is named."""
        return self.names[0]

    def name(self, asked: str) -> str:
        """The name of a checkpoint that is asked for in one of its spellings.

        Raises:
            RequestError: there is none of that name here.
        """
        asked = asked.strip().removeprefix(PREFIX)
        if asked.lower() in _DEFAULT:
            return self.default
        if asked in self._found:
            return asked
        short = short_name(asked) or asked
        for name in self._found:
            if short in (name, short_name(name)):
                return name
        raise RequestError(
            f"unknown model '{normalise.shown(asked)}'; choose from {', '.join(self.names)}"
        )

    def planner(self, asked: str) -> str:
        """The name of a language model that is asked for; empty for the service's own.

        A name that is not known here is refused once it is needed: clients send theirs with
        every song. A path is none, whatever lies there; of a path to one here the name counts.

        Raises:
            RequestError: it is a path.
        """
        from acestep.lm.models import available

        asked = asked.strip()
        if asked.lower() in _DEFAULT or asked == self._options.lm_model:
            return ""
        here = available(self._options.checkpoint)
        last = asked.replace("\\", "/").rstrip("/").rpartition("/")[2]
        if last in here:
            return last
        if asked == last and not asked.startswith((".", "~")) and not Path(asked).exists():
            return asked
        raise RequestError(
            f"lm_model_path names no language model here; choose from {', '.join(here)}"
        )

    def source(self, asked: str) -> str:
        """The same as `finding.find` is to be asked for it."""
        return self._found[self.name(asked)]


def _name(model: str, checkpoint: str | None) -> str:
    """What to call a checkpoint that the options name; a folder by its last part."""
    if model == "auto":
        return (
            "demo"
            if not finding.local_checkpoints(checkpoint)
            else finding.find(model, checkpoint).name
        )
    return Path(model).stem if "/" in model or Path(model).exists() else model

"""Workers of Ray, on other devices or machines: songs are made there, and their files come here."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from acestep.batch.pools import Cluster
from acestep.errors import AceStepError, CancelledError, GenerationError
from acestep.server.asking import Asked
from acestep.server.catalogue import Catalogue
from acestep.server.engines import Engines
from acestep.server.options import ServerOptions
from acestep.server.work import Reader, Report, Shelf, Work

if TYPE_CHECKING:
    import numpy as np
    import torch

Sounds = Mapping[str, "np.ndarray[Any, Any]"]

LOCAL = "local"
_GLANCE, _ENDING = 0.3, 120.0
# One works, the other answers how far it is.
_CALLS = 2


class Far:
    """What works far away: one device's models, asked for one task at a time.

    Args:
        device: see `device.resolve`.
        options: of the service.
        threads: of the host to compute with, or None for PyTorch's own number.
    """

    def __init__(self, device: str, options: ServerOptions, threads: int | None = None) -> None:
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.engines = Engines(device, options)
        self._at, self._stopped = (0.0, "starting"), threading.Event()

    def song(self, plain: Mapping[str, Any], sounds: Sounds) -> tuple[dict[str, Any], list[bytes]]:
        """See `Work.song`; the files' contents in place of their names.

        Args:
            plain: of `Asked`, its checkpoint as this machine finds it.
            sounds: samples by the path that `plain` has for them.
        """
        with tempfile.TemporaryDirectory(prefix="acestep-") as folder:
            shelf = _Shelf(Path(folder))
            work = Work(self.engines, shelf, _Sent(sounds), str)
            result, names = work.song(self._begun(plain), self._report)
            return result, [(shelf.results / name).read_bytes() for name in names]

    def sample(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """See `Work.sample`."""
        work = Work(self.engines, _Shelf(Path()), _Sent({}), str)
        return work.sample(self._begun(plain), self._report)

    def look(self) -> tuple[float, str]:
        """How far the task is, and what it is doing."""
        return self._at

    def stop(self) -> None:
        """Have the task end."""
        self._stopped.set()

    def _begun(self, plain: Mapping[str, Any]) -> Asked:
        self._at = (0.0, "starting")
        self._stopped.clear()
        return Asked.of(plain)

    def _report(self, fraction: float, desc: str = "") -> None:
        if self._stopped.is_set():
            raise CancelledError("cancelled")
        self._at = (fraction, desc)


class Wire(Protocol):
    """Calls to one that works far away."""

    def call(self, name: str, *arguments: Any) -> Any:
        """Begin a call; its handle."""

    def done(self, handle: Any, seconds: float) -> bool:
        """Whether it came back within so many seconds."""

    def result(self, handle: Any) -> Any:
        """What came back.

        Raises:
            AceStepError: as it was raised there, or the one who works died.
        """

    def close(self) -> None:
        """Let it go."""


class RayWire:
    """Calls to an actor of Ray.

    Args:
        ray: the module.
        actor: of `Far`.
    """

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor

    def call(self, name: str, *arguments: Any) -> Any:
        """See `Wire`."""
        return getattr(self._actor, name).remote(*arguments)

    def done(self, handle: Any, seconds: float) -> bool:
        """See `Wire`."""
        return bool(self._ray.wait([handle], timeout=seconds)[0])

    def result(self, handle: Any) -> Any:
        """See `Wire`."""
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AceStepError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayActorError:
            raise GenerationError("the worker died while making it; ask again") from None

    def close(self) -> None:
        """See `Wire`."""
        self._ray.kill(self._actor)


class Distant:
    """Does tasks where others work; see `Work`.

    Args:
        wire: to who works.
        store: takes the files.
        sounds: reads what tasks name: here, where it lies.
        catalogue: of checkpoints.
    """

    def __init__(self, wire: Wire, store: Shelf, sounds: Reader, catalogue: Catalogue) -> None:
        self.wire, self.store, self.sounds, self.catalogue = wire, store, sounds, catalogue

    def song(self, asked: Asked, report: Report) -> tuple[dict[str, Any], list[str]]:
        """See `Work.song`."""
        paths = [Path(path) for path in asked.sounds.values()]
        sounds = {str(path): self.sounds.read(path).numpy() for path in paths}
        result, contents = self._followed(report, "song", self._named(asked).plain(), sounds)
        names: list[str] = []
        try:
            for song, content in zip(result["songs"], contents, strict=True):
                part, name = self.store.new_result(Path(song["file"]).suffix[1:])
                part.write_bytes(content)
                self.store.keep(part, name)
                names.append(name)
                song["file"] = name
        except OSError as error:
            for name in names:
                (self.store.results / name).unlink(missing_ok=True)
            raise GenerationError(f"the song cannot be written ({error.strerror})") from None
        return result, names

    def sample(self, asked: Asked, report: Report) -> dict[str, Any]:
        """See `Work.sample`."""
        made: dict[str, Any] = self._followed(report, "sample", self._named(asked).plain())
        return made

    def close(self) -> None:
        """Let who works go."""
        self.wire.close()

    def _named(self, asked: Asked) -> Asked:
        """With the checkpoint as another machine finds it too."""
        source = self.catalogue.source(asked.model)
        return replace(
            asked, model=self.catalogue.name(asked.model) if source == "auto" else source
        )

    def _followed(self, report: Report, name: str, *arguments: Any) -> Any:
        """What a call brings, its progress told meanwhile; who stops it here stops it there."""
        handle = self.wire.call(name, *arguments)
        try:
            while not self.wire.done(handle, _GLANCE):
                fraction, stage = self.wire.result(self.wire.call("look"))
                report(fraction, desc=stage)
        except AceStepError:
            self.wire.call("stop")
            # Its next task is not to begin beside this one.
            self.wire.done(handle, _ENDING)
            raise
        return self.wire.result(handle)


def distant(
    options: ServerOptions, store: Shelf, sounds: Reader, catalogue: Catalogue
) -> Iterator[tuple[str, Distant]]:
    """One worker on each device of a Ray cluster.

    Raises:
        RequestError: Ray is not installed, or does not have the devices.
    """
    # Nobody named a device where there is only the default: the cluster says what there is.
    devices = () if options.devices == ("auto",) and options.ray != LOCAL else options.devices
    cluster = Cluster(devices, None if options.ray == LOCAL else options.ray)
    # One that dies is started again, and does its task again.
    actor = cluster.ray.remote(max_restarts=-1, max_task_retries=1, max_concurrency=_CALLS)(Far)
    # The folder and the key stay here.
    told = replace(options, api_key=None, data_dir=None, allowed=())
    for device, made in zip(cluster.devices, cluster.workers(actor, told), strict=True):
        yield device, Distant(RayWire(cluster.ray, made), store, sounds, catalogue)


class _Shelf:
    """A folder for the files of one task."""

    def __init__(self, folder: Path) -> None:
        self.results = folder

    def new_result(self, kind: str) -> tuple[Path, str]:
        name = f"{secrets.token_hex(8)}.{kind}"
        return self.results / f".part-{name}", name

    def keep(self, part: Path, name: str) -> None:
        part.rename(self.results / name)


class _Sent:
    """Samples that came with a task."""

    def __init__(self, sounds: Sounds) -> None:
        self._sounds = sounds

    def read(self, path: Path) -> torch.Tensor:
        import torch

        # What Ray hands over cannot be written to.
        return torch.from_numpy(self._sounds[str(path)].copy())

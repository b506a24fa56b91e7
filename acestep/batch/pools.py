"""Where workers run: in this process, or one a device over Ray."""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from acestep.batch.jobs import Job, Made
from acestep.batch.worker import Setting, Worker
from acestep.errors import AceStepError, RequestError

Outcome = Made | str | None
"""A song, why there is none, or None where the worker died at it."""


class Pool(Protocol):
    """Workers that take jobs."""

    room: int
    """Jobs that may be under way at a time."""

    def submit(self, job: Job) -> None:
        """Hand a job to a worker that has room."""

    def wait(self) -> tuple[Job, Outcome]:
        """The next job to come back."""

    def close(self) -> None:
        """Stop the workers."""


class InlinePool:
    """One worker in this process; needs nothing installed.

    Songs are computed in the caller's thread, and encoded in another while the next is computed.
    """

    room = 2

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._jobs: deque[Job] = deque()
        self._encoder = ThreadPoolExecutor(1)
        self._encoding: deque[tuple[Job, Future[Made | str]]] = deque()

    def submit(self, job: Job) -> None:
        """Queue the job."""
        self._jobs.append(job)

    def wait(self) -> tuple[Job, Outcome]:
        """The oldest job, once the one after it is computed."""
        while self._jobs:
            job = self._jobs.popleft()
            computed = self._worker.compute(job)
            if isinstance(computed, str):
                return job, computed
            self._encoding.append((job, self._encoder.submit(self._worker.encode, computed)))
            if len(self._encoding) == self.room:
                break
        job, encoded = self._encoding.popleft()
        return job, encoded.result()

    def close(self) -> None:
        """Forget the worker."""
        self._encoder.shutdown(cancel_futures=True)
        del self._worker


class Cluster:
    """Ray, on this machine or as a running cluster, and the devices that workers get there.

    Args:
        devices: one worker each; empty for one on each GPU of the cluster.
        address: of a running cluster, or None to start Ray here.

    Raises:
        RequestError: Ray is not installed, or has fewer GPUs than devices were named.
    """

    def __init__(self, devices: Sequence[str], address: str | None = None) -> None:
        try:
            module = importlib.import_module("ray")
        except ImportError:
            raise RequestError(
                "several devices need Ray; install it with: pip install 'acestep[batch]', or name "
                "one device"
            ) from None
        self.ray: Any = module
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        here = {} if address else {"include_dashboard": False, "num_cpus": max(len(devices), 2)}
        self.ray.init(address=address, logging_level="ERROR", log_to_driver=False, **here)
        gpus = int(self.ray.cluster_resources().get("GPU", 0))
        self.devices = list(devices) or ["auto"] * gpus
        if not self.devices:
            raise RequestError("the Ray cluster has no GPU; name devices with --devices")
        self._own = [_has_own_memory(device) for device in self.devices]
        if any(self._own) and gpus < len(self.devices):
            raise RequestError(
                f"{len(self.devices)} devices were named, but Ray sees {gpus} GPUs; see: ray status"
            )

    def workers(self, actor: Any, *arguments: Any) -> list[Any]:
        """A worker on each device.

        Args:
            actor: of Ray; it is made with the device, `arguments`, and the number of the host's
                threads to compute with, or None for PyTorch's own.
        """
        threads = max((os.cpu_count() or 1) // len(self.devices), 1)
        made = []
        for device, own in zip(self.devices, self._own, strict=True):
            # Ray shows each actor the device that it was given, as the first of its kind.
            kind = device.partition(":")[0]
            options = {"num_cpus": 1, "num_gpus": 1} if own else {"num_cpus": 1}
            count = None if own else threads
            made.append(actor.options(**options).remote(kind, *arguments, count))
        return made


class AheadPool:
    """One worker in this process, in a thread for each song under way: one is planned while one is
    made and one is encoded.

    The models take their turns by themselves; what a song is does not depend on the others.
    """

    room = 3

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._threads = ThreadPoolExecutor(self.room)
        self._under_way: deque[tuple[Job, Future[Made | str]]] = deque()

    def submit(self, job: Job) -> None:
        """Begin the job."""
        self._under_way.append((job, self._threads.submit(self._worker.make, job)))

    def wait(self) -> tuple[Job, Outcome]:
        """The oldest job, once it is done; what is wrong with the worker itself is raised."""
        job, made = self._under_way.popleft()
        return job, made.result()

    def close(self) -> None:
        """Stop what still runs, and forget the worker."""
        if any(not made.done() for _, made in self._under_way):
            self._worker.cancel()
        self._threads.shutdown(cancel_futures=True)


def inline(device: str, setting: Setting) -> InlinePool | AheadPool:
    """A pool of one worker in this process, of the kind that the setting asks for."""
    worker = Worker(device, setting)
    return AheadPool(worker) if setting.ahead else InlinePool(worker)


class RayPool:
    """One Ray actor a device, on this machine or on those of a Ray cluster.

    A worker that dies is started again with the jobs it had; those at which the new one dies too
    come back as None.

    Args:
        devices: one worker each; empty for one on each GPU of the cluster.
        setting: what each loads.
        address: of a running cluster, or None to start Ray here.

    Raises:
        RequestError: Ray is not installed, or has fewer GPUs than devices were named.
    """

    PER_WORKER = 2
    """Jobs a worker holds: while one is encoded to a file the next is computed."""

    def __init__(
        self, devices: Sequence[str], setting: Setting, address: str | None = None
    ) -> None:
        cluster = Cluster(devices, address)
        self._ray = cluster.ray
        # A job whose worker died waits for the new one; without that it would come back as long
        # as the checkpoint is being loaded, and be taken for the cause.
        actor = self._ray.remote(
            max_restarts=-1, max_task_retries=1, max_concurrency=self.PER_WORKER
        )(Worker)
        self._workers = cluster.workers(actor, setting)
        self.room = self.PER_WORKER * len(self._workers)
        self._under_way: dict[Any, tuple[Job, int]] = {}

    def submit(self, job: Job) -> None:
        """Hand the job to the worker with the fewest."""
        load = [0] * len(self._workers)
        for _, worker in self._under_way.values():
            load[worker] += 1
        least = load.index(min(load))
        self._under_way[self._workers[least].make.remote(job)] = (job, least)

    def wait(self) -> tuple[Job, Outcome]:
        """The next job to come back, from whichever worker."""
        (done,), _ = self._ray.wait(list(self._under_way), num_returns=1)
        job, _ = self._under_way.pop(done)
        try:
            return job, self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, AceStepError):
                raise cause from None
            return job, f"{type(cause).__name__}: {cause}"
        except self._ray.exceptions.RayActorError as error:
            if "AceStepError" in str(error) or "creation task" in str(error):
                raise RequestError(_last_line(str(error))) from None
            return job, None

    def close(self) -> None:
        """Stop the workers, and Ray where it was started here."""
        self._ray.shutdown()


def _has_own_memory(device: str) -> bool:
    """Whether the device is a card, which Ray hands out; on a cluster `auto` is one."""
    from acestep.device import resolve

    return device == "auto" or not resolve(device).unified_memory


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "a worker could not start"

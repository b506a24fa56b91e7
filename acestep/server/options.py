"""What the service is told at its start, and how much a client may take of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from acestep.device import quantization_of
from acestep.errors import RequestError

MIB = 2**20
DAY = 86400.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


@dataclass(frozen=True)
class Limits:
    """Bounds that keep the service answering; sizes in bytes, times in seconds.

    Attributes:
        upload_bytes, upload_seconds: of one audio file.
        body_bytes: of a request without files.
        chat_bytes: of a chat, which may hold audio as text.
        body_pause, body_time: longest wait for the next part of a body, and for all of it.
        head_time: for the head of a request.
        head_bytes, head_count: of the headers of a request.
        prompt_chars, lyrics_chars: longest texts.
        decode_seconds, decode_bytes: computing time and memory for reading one upload.
        decoders: uploads that are read at once.
        waiting: tasks in the queue.
        waiting_bytes: of all uploads that wait.
        asked_at_once: tasks that one question about results may name.
        task_seconds: longest time for one task.
        attempts: how often a task is taken up whose process died.
        keep_bytes, keep_seconds: of all results together, and of each.
        keep_records: how long it is remembered what became of a task.
        wrong_keys, wrong_window: of one address in so many seconds.
        grace: that running tasks have when the service is stopped.
        heartbeat: between the signs of life of a stream.
    """

    upload_bytes: int = 100 * MIB
    upload_seconds: float = 600.0
    body_bytes: int = MIB
    chat_bytes: int = 64 * MIB
    body_pause: float = 20.0
    body_time: float = 600.0
    head_time: float = 20.0
    head_bytes: int = 32 * 1024
    head_count: int = 100
    prompt_chars: int = 4000
    lyrics_chars: int = 20000
    decode_seconds: float = 30.0
    decode_bytes: int = 2048 * MIB
    decoders: int = 2
    waiting: int = 200
    waiting_bytes: int = 4096 * MIB
    asked_at_once: int = 1000
    task_seconds: float = 3600.0
    attempts: int = 2
    keep_bytes: int = 5120 * MIB
    keep_seconds: float = 7 * DAY
    keep_records: float = 90 * DAY
    wrong_keys: int = 20
    wrong_window: float = 60.0
    grace: float = 30.0
    heartbeat: float = 2.0


@dataclass(frozen=True)
class ServerOptions:
    """How the service runs.

    Attributes:
        host, port: where it listens.
        chat_port: where chat completions alone are served too; 0 for nowhere.
        api_key: that clients must send; None for none.
        open_without_key: serve others than this machine without a key.
        models: checkpoints that can be asked for, the default first; empty for all there are.
        lm_model, lm_backend: the language model, see `lm.models.find`, and its engine.
        init_llm: plan every song with it, as far as the song lets it.
        ahead: work on two tasks a device, so that one is planned while another is made.
        devices: one worker each.
        ray: address of the Ray cluster that the devices are part of, `local` to start Ray on this
            machine; empty for threads of this process.
        checkpoint: a folder whose `checkpoints` is searched first.
        offload: `none`, `dit` or `all`.
        quantize: in how few bits weights are held, see `DevicePolicy.with_quantization`.
        engine: what computes, one of `device.ENGINE_CHOICES`. (`ACESTEP_ENGINE` is what `auto`
            means, everywhere.)
        data_dir: folder for tasks and results.
        allowed: folders that `*_path` parameters may name files of.
        origins: web sites that may use the API from a browser.
        limits: see `Limits`.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    chat_port: int = 0
    api_key: str | None = None
    open_without_key: bool = False
    models: tuple[str, ...] = ()
    lm_model: str = "auto"
    lm_backend: str = ""
    init_llm: bool = False
    ahead: bool = False
    devices: tuple[str, ...] = ("auto",)
    ray: str = ""
    checkpoint: str | None = None
    offload: str = "none"
    quantize: str | None = None
    engine: str = "auto"
    data_dir: Path | None = None
    allowed: tuple[Path, ...] = ()
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in _LOOPBACK

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names it may be asked for under; none in particular beyond loopback.

        So no web site can reach a service on loopback by pointing its own name there.
        """
        return _LOOPBACK if self.on_loopback else ()

    @property
    def folder(self) -> Path:
        """Where tasks and results are kept (`ACESTEP_API_DATA` moves it)."""
        from acestep.checkpoint.folders import cache_dir

        if self.data_dir is not None:
            return self.data_dir
        text = os.environ.get("ACESTEP_API_DATA", "").strip()
        return Path(text).expanduser() if text else cache_dir() / "server"

    def checked(self) -> ServerOptions:
        """These options, known to make sense together.

        Raises:
            RequestError: one is out of range, or the service would be open to everybody.
        """
        for name, port, least in (("--port", self.port, 1), ("--chat-port", self.chat_port, 0)):
            if not least <= port <= 65535:
                raise RequestError(f"{name} {port} is out of range; expected {least} to 65535")
        if self.chat_port == self.port:
            raise RequestError("--chat-port is the --port; give another one, or leave it out")
        if self.api_key is not None and not self.api_key.strip():
            raise RequestError("the API key is empty; give one that nobody guesses")
        if self.ahead and self.ray:
            raise RequestError("--ahead is for devices of this machine; leave out it or --ray")
        if not self.devices:
            raise RequestError("no device is named; give --device auto")
        if not self.on_loopback and self.api_key is None and not self.open_without_key:
            raise RequestError(
                f"{self.host} can be reached by others; give --api-key KEY, or --no-key to serve "
                "them all"
            )
        for folder in self.allowed:
            if not folder.is_dir():
                raise RequestError(f"--allow-folder {folder}: no such folder")
        return self


def from_environment(given: Mapping[str, Any], environment: Mapping[str, str]) -> ServerOptions:
    """Options of the command line, and where it says nothing, of ACE-Step's variables.

    Args:
        given: fields of `ServerOptions`; None where nothing is said.
        environment: `ACESTEP_API_HOST`, `_PORT`, `_KEY`, `ACESTEP_CONFIG_PATH` (`2`, `3`),
            `ACESTEP_LM_MODEL_PATH`, `ACESTEP_LM_BACKEND`, `ACESTEP_INIT_LLM`,
            `ACESTEP_QUANTIZATION`, `ACESTEP_QUEUE_MAXSIZE`. (`ACESTEP_DEVICE` is what `auto` means, everywhere.)

    Raises:
        RequestError: a variable cannot be understood.
    """

    def text(name: str) -> str | None:
        return environment.get(f"ACESTEP_{name}", "").strip() or None

    models = tuple(filter(None, (text("CONFIG_PATH"), text("CONFIG_PATH2"), text("CONFIG_PATH3"))))
    init = (text("INIT_LLM") or "auto").lower()
    if init not in ("auto", "true", "1", "yes", "on", "false", "0", "no", "off"):
        raise RequestError(f"ACESTEP_INIT_LLM={init!r} is neither true, false nor auto")
    said: dict[str, Any] = {
        "host": text("API_HOST"),
        "port": _number("API_PORT", text("API_PORT")),
        "api_key": text("API_KEY"),
        "models": models or None,
        "lm_model": text("LM_MODEL_PATH"),
        "lm_backend": text("LM_BACKEND"),
        "quantize": quantization_of(text("QUANTIZATION")),
        "init_llm": init in ("true", "1", "yes", "on"),
    }
    said.update({name: value for name, value in given.items() if value is not None})
    options = ServerOptions(**{name: value for name, value in said.items() if value is not None})
    waiting = _number("QUEUE_MAXSIZE", text("QUEUE_MAXSIZE"))
    if waiting is not None and "limits" not in given:
        if waiting < 1:
            raise RequestError(f"ACESTEP_QUEUE_MAXSIZE={waiting} is out of range; give 1 or more")
        options = replace(options, limits=replace(options.limits, waiting=waiting))
    return options


def _number(name: str, value: str | None) -> int | None:
    if value is None:
        return None
    if not value.isdecimal():
        raise RequestError(f"ACESTEP_{name}={value!r} is not a whole number")
    return int(value)

"""What the service is to load and where, as the command line or the page's panel says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from acestep.device import BACKEND_CHOICES, DevicePolicy, default_lm_backend, resolve
from acestep.errors import RequestError

OFFLOADS = ("none", "dit", "all")
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Names under which only this machine reaches itself."""


@dataclass(frozen=True)
class Choice:
    """What to load.

    Attributes:
        model: which checkpoint, see `finding.find`.
        device: see `device.resolve`.
        backend: engine of the language model; empty lets the device decide.
        lm_model: which language model, `auto`, or empty for none.
        offload: `none`, `dit` or `all`.
        flash_attention: attention through flash-attn.
        quantize: in how few bits weights are held, see `DevicePolicy.with_quantization`.
        engine: what computes, one of `device.ENGINE_CHOICES`.
    """

    model: str = "auto"
    device: str = "auto"
    backend: str = ""
    lm_model: str = "auto"
    offload: str = "none"
    flash_attention: bool = False
    quantize: str | None = None
    engine: str = "auto"

    def policy(self) -> DevicePolicy:
        """The device, with everything checked that can be checked before loading.

        Raises:
            RequestError: the device is absent, or cannot run the backend.
        """
        policy = resolve(self.device, quantization=self.quantize, engine=self.engine)
        self.backend_on(policy)
        if self.offload not in OFFLOADS:
            raise RequestError(
                f"unknown offloading '{self.offload}'; choose from {', '.join(OFFLOADS)}"
            )
        return policy

    def backend_on(self, policy: DevicePolicy) -> str:
        """The language model's engine on a device.

        Raises:
            RequestError: the device cannot run the one asked for.
        """
        backend = self.backend or policy.lm_backend
        if backend not in BACKEND_CHOICES:
            raise RequestError(
                f"unknown backend '{backend}'; choose from {', '.join(BACKEND_CHOICES)}"
            )
        if problem := policy.lm_backend_problem(backend):
            raise RequestError(
                f"the backend '{backend}' cannot be used on {policy.name}: "
                f"{problem}; choose {policy.lm_backend}"
            )
        return backend


@dataclass(frozen=True)
class PageOptions:
    """The page's options, under the names of the command line.

    Attributes:
        port, server_name, share: where it is served.
        debug: print tracebacks.
        language: the page's first language.
        service_mode: visitors cannot change what is loaded.
        init_service, init_llm: load at start.
        checkpoint: a folder whose `checkpoints` is searched first.
        config_path, device, lm_model_path, backend, quantize, engine: see `Choice`.
        enable_api, api_key: the HTTP API, and the key it asks for.
        auth_username, auth_password: to sign in with.
        data_dir: folder for songs and uploads; by default in the cache.
    """

    port: int = 7860
    share: bool = False
    debug: bool = False
    server_name: str = "127.0.0.1"
    language: str = "en"
    service_mode: bool = False
    init_service: bool = False
    checkpoint: str | None = None
    config_path: str = "auto"
    device: str = "auto"
    init_llm: bool = False
    lm_model_path: str | None = None
    backend: str | None = None
    use_flash_attention: bool = False
    offload_to_cpu: bool = False
    offload_dit_to_cpu: bool = False
    quantize: str | None = None
    engine: str = "auto"
    enable_api: bool = False
    api_key: str | None = None
    auth_username: str | None = None
    auth_password: str | None = None
    data_dir: Path | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> PageOptions:
        """Options from a mapping; what it holds beside them is passed over."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})

    def checked(self) -> PageOptions:
        """These options, known to make sense together.

        Raises:
            RequestError: one is missing its other half, or out of range.
        """
        if not 1 <= self.port <= 65535:
            raise RequestError(f"port {self.port} is out of range; expected 1 to 65535")
        if bool(self.auth_username) != bool(self.auth_password):
            raise RequestError("give --auth-username and --auth-password together")
        if self.api_key is not None and not self.enable_api:
            raise RequestError("--api-key is the key of the API; add --enable-api")
        if self.api_key is not None and not self.api_key.strip():
            raise RequestError("the API key is empty; give one that nobody guesses")
        return self

    @property
    def open_to_strangers(self) -> bool:
        """Whether others than this machine's users can reach the page and nobody asks who they
        are."""
        away = self.share or self.server_name not in LOOPBACK
        return away and not (self.auth_username and self.auth_password)

    @property
    def choice(self) -> Choice:
        """What to load at first."""
        offload = "all" if self.offload_to_cpu else "dit" if self.offload_dit_to_cpu else "none"
        return Choice(
            model=self.config_path or "auto",
            device=self.device,
            backend=self.backend or "",
            lm_model=self.lm_model_path or "auto",
            offload=offload,
            flash_attention=self.use_flash_attention,
            quantize=self.quantize,
            engine=self.engine,
        )


def first_backend(device: str, engine: str = "auto") -> str:
    """The backend that the panel starts with; of an absent device, what it would be here."""
    try:
        return resolve(device, engine=engine).lm_backend
    except RequestError:
        return default_lm_backend("cpu")[0]

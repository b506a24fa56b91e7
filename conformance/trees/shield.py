"""Keeps a run to itself: no network, no file of the checkout written, a home of its own."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOCAL = frozenset({"localhost", "ip6-localhost", "", "0.0.0.0", "::", "::1"})
# What a checkout holds beside its code, and what no question needs.
_LEFT_OUT = (
    ".git",
    ".venv",
    "venv",
    "node_modules",
    "__pycache__",
    "checkpoints",
    "outputs",
    "*.safetensors",
    "*.ckpt",
    "*.gguf",
    "*.mp3",
    "*.wav",
    "*.mp4",
)
_LOOK_UPS = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr")
_HOMES = {
    "HOME": "home",
    "USERPROFILE": "home",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "HF_HOME": "home/.cache/huggingface",
    "MODELSCOPE_CACHE": "home/.cache/modelscope",
    "TORCH_HOME": "home/.cache/torch",
    "MPLCONFIGDIR": "home/.config/matplotlib",
    "NUMBA_CACHE_DIR": "home/.cache/numba",
    "GRADIO_TEMP_DIR": "home/gradio",
    "TMPDIR": "tmp",
}
#: What libraries are told, before they are imported, so that they give up at once.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "DO_NOT_TRACK": "1",
}


class NetworkRefusedError(OSError):
    """Code under test tried the network, which a run has none of."""


def copy_of(root: Path, folder: Path) -> Path:
    """A copy of a checkout's code in `folder/tree`; weights, music and history stay behind."""
    to = folder / "tree"
    ignored = shutil.ignore_patterns(*_LEFT_OUT)
    shutil.copytree(root, to, ignore=ignored, ignore_dangling_symlinks=True)
    return to


@contextmanager
def own_home(folder: Path) -> Iterator[None]:
    """A home, caches and a working folder below `folder`, within a block."""
    work = folder / "work"
    changed = OFFLINE | {name: str(folder / below) for name, below in _HOMES.items()}
    for place in {work, *(folder / below for below in _HOMES.values())}:
        place.mkdir(parents=True, exist_ok=True)
    before, at = {name: os.environ.get(name) for name in changed}, Path.cwd()
    known, tempfile.tempdir = tempfile.tempdir, None
    os.environ.update(changed)
    os.chdir(work)
    try:
        yield
    finally:
        os.chdir(at)
        tempfile.tempdir = known
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def no_network(noted: Callable[[str, Any], None]) -> Iterator[None]:
    """Refuse every address beyond this machine; `noted(address, frame)` is told of each try.

    Raises:
        NetworkRefusedError: in the code that tried, at the call.
    """

    own = socket.gethostname()

    def refuse(address: Any) -> None:
        host = address[0] if isinstance(address, tuple) and address else address
        if host != own and not _is_local(host):
            noted(str(host), sys._getframe(2))
            raise NetworkRefusedError(f"no network during a conformance run (asked for {host})")

    plain = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
    looked_up = {name: getattr(socket, name) for name in _LOOK_UPS}

    def connect(self: socket.socket, address: Any) -> None:
        refuse(address)
        return plain[0](self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        refuse(address)
        return plain[1](self, address)

    def sendto(self: socket.socket, data: Any, *args: Any) -> int:
        refuse(args[-1])
        return plain[2](self, data, *args)

    def asking(name: str) -> Callable[..., Any]:
        def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
            refuse((host,))
            return looked_up[name](host, *args, **kwargs)

        return look_up

    names = ("connect", "connect_ex", "sendto")
    for name, value in zip(names, (connect, connect_ex, sendto), strict=True):
        setattr(socket.socket, name, value)
    for name in _LOOK_UPS:
        setattr(socket, name, asking(name))
    try:
        yield
    finally:
        for name in names:
            delattr(socket.socket, name)
        for name, value in looked_up.items():
            setattr(socket, name, value)


def _is_local(host: Any) -> bool:
    """Whether an address is this machine's own: a Unix socket's path, or a loop-back."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host is None or not isinstance(host, str) or host in _LOCAL or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False

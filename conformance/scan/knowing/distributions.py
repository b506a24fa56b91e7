"""Packages as installers know them: which need CUDA, and whether a Mac is asked for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from conformance.scan.findings import Severity

#: No wheel for a Mac, and nothing to build there: the installation fails.
_MISSING = re.compile(
    r"nvidia-(?!ml-py|pyindex|htop)[a-z0-9-]+|cupy(?:-cuda[\dx-]+)?|pycuda|cuda-(?:python|core)"
    r"|flash-attn(?:-\d)?|flash-attention|xformers|triton|tensorrt(?:-.+)?|torch-tensorrt|apex"
    r"|onnxruntime-gpu|onnxruntime-genai-cuda|faiss-gpu(?:-cu\d+)?|mamba-ssm|causal-conv1d"
    r"|transformer-engine(?:-.+)?|spconv-cu\d+|paddlepaddle-gpu|dgl-cu\d+|cu(?:df|ml|graph)-cu\d+"
    r"|pytorch3d-cu\d+|torch-cu\d+|flashinfer-python|deep-gemm|sageattention|tinycudann|nvdiffrast"
    r"|pyg-lib-cu\d+|k2-cuda|rmm-cu\d+|raft-cu\d+"
)
#: Installs there, or can be built, and then does little or nothing.
_POORER = re.compile(r"bitsandbytes|vllm|auto-?gptq|autoawq|gptqmodel|exllamav2|lmdeploy|sglang")
#: What conda has for Linux and Windows alone.
_CONDA = re.compile(
    r"pytorch-cuda|pytorch-gpu|cudatoolkit(?:-.+)?|cudnn|nccl|cuda(?:-.+)?|cupy|faiss-gpu|xformers"
    r"|flash-attn|tensorrt|libcu(?:blas|dnn|fft|rand|sparse|solver)(?:-.+)?"
)
_LIBRARY = re.compile(r"nvidia-[a-z0-9-]+-cu\d+")
_LOCAL = re.compile(r"\+cu\d+|[_-]cuda?\d+\.?\d*(?=[_.]|$)")
_CUDA_INDEX = re.compile(r"https?://\S*?(?:/whl/(?:\w+/)*cu\d+|[./]cu1\d\d\b|/cu\d+/?$)")
_OPTION = re.compile(r"--?[\w-]+(?:[ =]+(\S+))?")
_WHEEL = re.compile(r"([\w.]+)-[\w.+!]+-.*\.whl")
_BUILD = re.compile(r"=[^=\s]*(?:cuda|cu1\d\d|gpu)[^=\s]*\Z")
_MACS = tuple(
    {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "os_name": "posix",
        "platform_machine": "arm64",
        "python_version": version,
        "python_full_version": f"{version}.0",
        "extra": "",
    }
    for version in ("3.8", "3.10", "3.12", "3.13")
)


@dataclass(frozen=True, slots=True)
class Need:
    """Why a request cannot be met on a Mac, or is met in vain; ``name`` is the package's.

    ``library`` says that the package is a part of CUDA's runtime, which come a dozen at a time.
    ``marked`` says that a marker could keep the request from Macs.
    """

    name: str
    reason: str
    severity: Severity
    library: bool = False
    marked: bool = True


@lru_cache(maxsize=4096)
def needs_cuda(text: str, installer: str = "pip") -> Need | None:
    """What is wrong with one request (a requirement, or an option of pip) on a Mac, if anything."""
    if text.startswith("-"):
        return _of_option(text)
    if installer == "conda":
        return _of_conda(text)
    return _of_url(text) if re.match(r"(?:\w+\+)?\w+://|\S+\.whl\b", text) else _of_pip(text)


def _of_pip(text: str) -> Need | None:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        asked = Requirement(text.partition(" --")[0])
    except InvalidRequirement:
        return None
    if asked.marker is not None and not any(asked.marker.evaluate(mac) for mac in _MACS):
        return None
    name = str(canonicalize_name(asked.name))
    if asked.url and (need := _of_url(asked.url)) is not None:
        return Need(asked.name, need.reason, need.severity)
    if re.search(r"\+cu\d+", str(asked.specifier)):
        return Need(asked.name, f"{text.split(';')[0].strip()} is built for CUDA", Severity.ERROR)
    return _by_name(name, asked.name)


def _by_name(name: str, shown: str) -> Need | None:
    if _MISSING.fullmatch(name):
        library = _LIBRARY.fullmatch(name) is not None
        reason = f"{shown} needs CUDA and cannot be installed on a Mac"
        return Need(shown, reason, Severity.ERROR, library)
    if _POORER.fullmatch(name):
        return Need(shown, f"{shown} is made for CUDA", Severity.WARNING)
    return None


def _of_url(url: str) -> Need | None:
    name = url.rstrip("/").rpartition("/")[2].partition("#")[0]
    wheel = _WHEEL.match(name)
    if wheel is not None and (_LOCAL.search(name) or "linux_x86_64" in name):
        return Need(wheel[1], f"{name} is built for CUDA", Severity.ERROR)
    repository = re.search(r"/([\w.-]+?)(?:\.git)?(?:@[\w./-]+)?(?:#.*)?\Z", url)
    known = {"flash-attention": "flash-attn", "tiny-cuda-nn": "tinycudann", "apex": "apex"}
    short = repository[1].lower() if repository is not None else ""
    if short in known or "tiny-cuda-nn" in url:
        shown = known.get(short, "tinycudann")
        return Need(shown, f"{shown} needs CUDA and cannot be built on a Mac", Severity.ERROR)
    return None


def _of_option(text: str) -> Need | None:
    """An index that holds builds for CUDA only: alone, nothing is found there for a Mac."""
    match = _OPTION.match(text)
    url = match[1] if match is not None else None
    if not url or not _CUDA_INDEX.search(url):
        return None
    alone = text.startswith(("--index-url", "-i"))
    severity = Severity.ERROR if alone else Severity.WARNING
    return Need(url, f"the index {url} holds builds for CUDA", severity, marked=False)


def _of_conda(text: str) -> Need | None:
    plain = text.rpartition("::")[2].strip()
    name = re.split(r"[\s=<>!~\[]", plain, maxsplit=1)[0].lower()
    if _CONDA.fullmatch(name):
        return Need(
            name, f"conda has {name} for Linux and Windows alone", Severity.ERROR, marked=False
        )
    if _BUILD.search(plain):
        return Need(name, f"{plain} is a build for CUDA", Severity.ERROR, marked=False)
    return None


def is_index(url: str) -> bool:
    """Whether an address is that of an index of builds for CUDA."""
    return _CUDA_INDEX.search(url) is not None

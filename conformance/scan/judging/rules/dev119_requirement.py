"""DEV119: a package that needs CUDA is required of everybody."""

from __future__ import annotations

from dataclasses import replace

from conformance.scan.findings import Edit, Finding, Fix, Severity
from conformance.scan.judging.document import Document
from conformance.scan.judging.rule import Bad, Good, Rule
from conformance.scan.knowing.distributions import Need, is_index, needs_cuda
from conformance.scan.knowing.errands import asks_where, says_cuda
from conformance.scan.reading.files.pieces import Asked, Setting

_MARKER = "sys_platform != 'darwin'"


def _asked(document: Document, asked: Asked) -> None:
    if asked.elsewhere:
        return
    need = needs_cuda(asked.text, asked.installer)
    if need is None:
        return
    fix = _marked(document, asked, need)
    if need.library and (first := _first_library(document)) is not None:
        _together(document, first, fix)
        return
    reason = need.reason
    if need.library:
        reason = f"{need.name} is a part of CUDA's runtime and cannot be installed on a Mac"
    severity = need.severity
    if asked.group:
        # Nobody has to take an extra; one whose name says CUDA is not taken by mistake.
        is_command = document.kind in ("shell", "make", "docker")
        aware = asks_where(asked.group) if is_command else says_cuda(asked.group)
        if aware or asked.group.replace("_", "-") == need.name.replace("_", "-"):
            severity = Severity.NOTE
        elif not is_command:
            severity = Severity.WARNING
    if document.kind == "docker":
        severity = Severity.NOTE
    message = f"{reason}, and no marker keeps it from Macs" if need.marked else reason
    document.report(RULE, asked, message, severity=severity, fix=fix)


def _first_library(document: Document) -> Finding | None:
    return next((f for f in document.findings if "a part of CUDA's runtime" in f.message), None)


def _together(document: Document, first: Finding, fix: Fix | None) -> None:
    """One finding for all of CUDA's libraries, which come a dozen at a time."""
    edits = (*(first.fix.edits if first.fix else ()), *(fix.edits if fix else ()))
    document.findings[document.findings.index(first)] = replace(
        first, fix=Fix(edits, safe=True) if edits else None
    )


def _marked(document: Document, asked: Asked, need: Need) -> Fix | None:
    """Safe fix: a marker that keeps the requirement from Macs and from nobody else."""
    if not need.marked or asked.text.startswith("-") or ";" in asked.text:
        return None
    if document.kind in ("requirements", "cfg"):
        head = asked.text.partition(" --")[0].rstrip()
        at = asked.start + len(head)
        space = " " if "://" in head else ""
        return Fix((Edit(at, at, f"{space}; {_MARKER}"),), safe=True)
    written = document.source.text[asked.start : asked.end]
    listed = document.kind == "setup" or written[1:-1] == asked.text
    if asked.installer != "pip" or not listed or written[:1] not in ("'", '"'):
        return None
    quoted = _MARKER.replace("'", '"') if written[0] == "'" else _MARKER
    return Fix((Edit(asked.end - 1, asked.end - 1, f"; {quoted}"),), safe=True)


def _setting(document: Document, setting: Setting) -> None:
    """An index in a project's file that packages are taken from, without a marker."""
    if setting.key not in ("url", "index-url", "extra-index-url") or not is_index(setting.value):
        return
    uv = setting.keys[:3] == ("tool", "uv", "index")
    if not uv and setting.keys[:3] != ("tool", "poetry", "source"):
        return
    beside = {other.key: other.value for other in document.beside(setting)}
    name = beside.get("name", "")
    users = [s for s in document.settings if s.key == "index" and s.value == name]
    open_users = [
        s
        for s in users
        if not any(
            o.key == "marker" or (o.key == "extra" and says_cuda(o.value))
            for o in document.beside(s)
        )
    ]
    explicit = beside.get("explicit") == "true" or beside.get("priority") in (
        "explicit",
        "supplemental",
    )
    if uv and explicit and not open_users:
        return
    severity = Severity.ERROR if open_users else Severity.WARNING
    message = f"packages come from {setting.value}, which holds builds for CUDA, on Macs as well"
    document.report(RULE, setting, message, severity=severity)


RULE = Rule(
    code="DEV119",
    name="cuda-requirement",
    severity=Severity.ERROR,
    summary="a package or an index that is for CUDA alone is required without a platform marker",
    why=(
        "There are no builds of these packages for a Mac, so that `pip install -r` or `conda env "
        "create` fails before the first line of the program runs; an index of CUDA builds has no "
        "PyTorch for it."
    ),
    remedy=(
        "Add a marker (`; sys_platform != 'darwin'`), move the package to an extra that is named for "
        "CUDA, and let the default index choose the build of PyTorch."
    ),
    invalid=(
        Bad(
            "numpy\nflash-attn>=2.5\n",
            2,
            "numpy\nflash-attn>=2.5; sys_platform != 'darwin'\n",
            path="requirements.txt",
        ),
        Bad(
            "nvidia-cublas-cu12==12.1.3.1\nnvidia-cudnn-cu12==9.1.0.70\n",
            1,
            "nvidia-cublas-cu12==12.1.3.1; sys_platform != 'darwin'\n"
            "nvidia-cudnn-cu12==9.1.0.70; sys_platform != 'darwin'\n",
            path="requirements.txt",
        ),
        Bad(
            "--index-url https://download.pytorch.org/whl/cu121\ntorch\n",
            1,
            path="requirements.txt",
        ),
        Bad(
            "torch==2.1.0+cu118\n",
            1,
            path="requirements/base.txt",
            fixed="torch==2.1.0+cu118; sys_platform != 'darwin'\n",
        ),
        Bad(
            '[project]\nname = "x"\ndependencies = [\n  "torch",\n  "xformers",\n]',
            5,
            '[project]\nname = "x"\ndependencies = [\n  "torch",\n  "xformers; sys_platform != \'darwin\'",\n]',
            path="pyproject.toml",
        ),
        Bad("[options]\ninstall_requires =\n    torch\n    cupy-cuda12x", 4, path="setup.cfg"),
        Bad(
            "from setuptools import setup\nsetup(\n    install_requires=[\n        'bitsandbytes',\n    ],\n)",
            4,
            path="setup.py",
        ),
        Bad(
            "name: x\ndependencies:\n  - python=3.11\n  - pytorch-cuda=12.1\n  - pip:\n    - triton",
            4,
            path="environment.yml",
        ),
        Bad("set -e\npip install flash-attn --no-build-isolation", 2, path="setup.sh"),
        Bad(
            '[[tool.uv.index]]\nname = "cu"\nurl = "https://download.pytorch.org/whl/cu124"\nexplicit = true\n'
            '[tool.uv.sources]\ntorch = {index = "cu"}',
            3,
            path="pyproject.toml",
        ),
    ),
    valid=(
        Good("flash-attn>=2.5; sys_platform == 'linux'\n", "requirements.txt"),
        Good("onnxruntime-gpu; platform_machine == 'x86_64'\n", "requirements.txt"),
        Good("flash-attn\nnvidia-cublas-cu12\n", "package-lock.txt"),
        Good("nvidia-ml-py\nbitsandbytes-stubs\n", "requirements.txt"),
        Good(
            '[[tool.uv.index]]\nname = "cu"\nurl = "https://download.pytorch.org/whl/cu124"\nexplicit = true\n'
            '[tool.uv.sources]\ntorch = [{index = "cu", marker = "sys_platform == \'linux\'"}]',
            "pyproject.toml",
        ),
        Good("name: x\ndependencies:\n  - pytorch\n  - cudatoolkit  # [linux]", "environment.yml"),
    ),
    hooks={"asked": _asked, "setting": _setting},
    fixable=True,
)

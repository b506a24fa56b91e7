"""DEV117: a configuration file sets CUDA as the device."""

from __future__ import annotations

from conformance.scan.findings import Severity
from conformance.scan.judging.document import Document
from conformance.scan.judging.rule import Bad, Good, Rule
from conformance.scan.knowing.errands import says_cuda
from conformance.scan.knowing.settings import (
    falls_to_cuda,
    is_device_key,
    names_cuda,
    names_mac,
)
from conformance.scan.reading.files.pieces import Setting

_DESCRIBED = ("default", "value")


def _setting(document: Document, setting: Setting) -> None:
    if setting.origin or document.kind == "compose" or not _is_device(setting):
        return
    defaulted = falls_to_cuda(setting.value)
    if not (names_cuda(setting.value) or defaulted) or _is_chosen(document, setting):
        return
    shown = setting.value if len(setting.value) < 40 else "cuda"
    message = f"{'.'.join(setting.keys)} is set to {shown!r}: whoever uses this file needs CUDA"
    document.report(RULE, setting, message, severity=Severity.WARNING if defaulted else None)


def _is_device(setting: Setting) -> bool:
    """Whether the key, or the thing that it is the default of, is a device."""
    names = [key for key in setting.keys if not key.startswith("[")]
    key = names[-1] if names else ""
    return is_device_key(key) or (key in _DESCRIBED and len(names) > 1 and is_device_key(names[-2]))


def _is_chosen(document: Document, setting: Setting) -> bool:
    """Whether the file knows Macs, lists devices to choose from, or names the block for CUDA."""
    if any(says_cuda(key) for key in setting.keys[:-1]):
        return True
    if any(names_mac(other.value) or names_mac(other.key) for other in document.settings):
        return True
    return setting.keys[-1].startswith("[") and any(
        other.keys[:-1] == setting.keys[:-1] and not names_cuda(other.value)
        for other in document.beside(setting)
    )


RULE = Rule(
    code="DEV117",
    name="config-device",
    severity=Severity.ERROR,
    summary="a configuration file (YAML, TOML, JSON) sets CUDA as the device",
    why=(
        "Whoever starts the program with this file gets an error without CUDA, however well its code "
        "chooses: a setting that is there is taken at its word."
    ),
    remedy=(
        'Leave the device out, or set it to what the program reads as "choose yourself" (`auto`). '
        "A file that is meant for CUDA says so in its name (`train.cuda.yaml`)."
    ),
    invalid=(
        Bad("model:\n  name: tiny\n  device: cuda:0", 3, path="config/train.yaml"),
        Bad('[run]\ndevice = "cuda"', 2, path="settings.toml"),
        Bad('{\n "trainer": {"accelerator": "cuda", "max_steps": 9}\n}', 2, path="conf/run.json"),
        Bad("device: ${oc.env:DEVICE,cuda}", 1, path="conf/base.yaml"),
        Bad("params:\n  device:\n    type: str\n    default: cuda", 4, path="options.yaml"),
    ),
    valid=(
        Good("device: auto\nseed: 1", "config/train.yaml"),
        Good("jobs:\n  test:\n    strategy:\n      matrix:\n        device: cuda", "ci.yaml"),
        Good("device: [cpu, cuda]", "sweep.yaml"),
        Good("linux:\n  device: cuda\nmac:\n  device: mps", "profiles.yaml"),
        Good('{"device": "cuda"}', "tests/data/case.json"),
        Good("cuda:\n  device: cuda:0", "profiles.yaml"),
    ),
    hooks={"setting": _setting},
)

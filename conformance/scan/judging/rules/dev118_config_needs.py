"""DEV118: a setting or option asks for what only CUDA has."""

from __future__ import annotations

from conformance.scan.findings import Severity
from conformance.scan.judging.document import Document
from conformance.scan.judging.rule import Bad, Good, Rule
from conformance.scan.knowing.errands import asks_where, says_cuda
from conformance.scan.knowing.settings import is_device_key, is_half, only_cuda_has
from conformance.scan.reading.files.pieces import Setting


def _setting(document: Document, setting: Setting) -> None:
    if document.kind == "compose":
        return
    reason = only_cuda_has(setting.key, setting.value)
    if reason is not None:
        # The backend of distributed runs, which are started apart: nobody else meets it.
        severity = Severity.NOTE if setting.value == "nccl" else None
        if not _is_meant(document, setting):
            message = f"{reason}: off CUDA this setting fails"
            document.report(RULE, setting, message, severity=severity)
    elif is_half(setting.key, setting.value):
        beside = [other for other in document.beside(setting) if is_device_key(other.key)]
        if beside and not setting.origin:
            on = beside[0].value
            severity = Severity.WARNING if on == "cpu" else Severity.NOTE
            message = f"half precision whatever the device is, beside {beside[0].key}: {on}"
            document.report(RULE, setting, message, severity=severity)


def _is_meant(document: Document, setting: Setting) -> bool:
    """Whether the block that a setting or command stands in is for CUDA, or asks where it runs."""
    if setting.origin:
        return any(
            asks_where(test)
            for command in document.commands
            if command.start == setting.start
            for test in command.around
        )
    return any(says_cuda(key) for key in setting.keys[:-1])


RULE = Rule(
    code="DEV118",
    name="config-needs",
    severity=Severity.ERROR,
    summary="a setting asks for what only CUDA has: 8-bit optimizers, flash attention, NCCL",
    why=(
        "bitsandbytes' optimizers, flash attention, xformers and NCCL exist for CUDA alone; a program "
        "that is told to use one stops where there is none. Half precision beside a device stays "
        "when the device is changed, and is slow or missing on the CPU."
    ),
    remedy=(
        "Name what runs everywhere (`adamw`, `sdpa`, `gloo`) and turn the quicker one on where CUDA "
        "was found, or keep such settings in a file that says so in its name."
    ),
    invalid=(
        Bad("train:\n  optimizer: adamw8bit\n  lr: 1e-4", 2, path="config/train.yaml"),
        Bad('[model]\nattn_implementation = "flash_attention_2"', 2, path="model.toml"),
        Bad('{"distributed": {"backend": "nccl"}}', 1, path="conf/dist.json"),
        Bad("device: cpu\ndtype: fp16", 2, path="infer.yaml"),
        Bad("python train.py --optimizer_type AdamW8bit --lr 1e-4", 1, path="train.sh"),
    ),
    valid=(
        Good("train:\n  optimizer: adamw\n  attn_implementation: sdpa", "config/train.yaml"),
        Good("dtype: fp16\nname: tiny", "infer.yaml"),
        Good("cuda:\n  optimizer: adamw8bit", "profiles.yaml"),
        Good("use_xformers: false", "train.yaml"),
    ),
    hooks={"setting": _setting},
)

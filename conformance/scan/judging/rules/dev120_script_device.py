"""DEV120: a shell script or Makefile names CUDA as the device."""

from __future__ import annotations

import re

from conformance.scan.findings import Severity
from conformance.scan.judging.document import Document
from conformance.scan.judging.rule import Bad, Good, Rule
from conformance.scan.knowing.errands import asks_where
from conformance.scan.knowing.settings import is_device_key, names_cuda
from conformance.scan.reading.files.pieces import Command

_SHOWN = frozenset({"echo", "printf", "cat", "grep", "sed", "usage"})
_DEFAULT = re.compile(r"\$[{(][^})]*(?::-|:=|or )[\"']?cuda(?::\d+)?[\"']?[})]\Z")
#: Options that ask for CUDA, and what switches them off.
_COMPILER = re.compile(r"(?:^|/)(?:nvcc|hipcc|clang(?:\+\+)?|g?cc|[gc]\+\+)(?:-\d+)?\Z")
_ASKING = re.compile(r"--(?:use[-_])?cuda\Z")
_OFF = frozenset({"0", "false", "no", "off", "none"})
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def _command(document: Document, command: Command) -> None:
    if document.kind not in ("shell", "make") or any(map(asks_where, command.around)):
        return
    shown = command.words and command.words[0] in _SHOWN
    option = None if shown or not command.words else _option(command.words)
    if option is not None:
        if _ASKING.match(option):
            message = f"{option} asks for CUDA: elsewhere this command fails, or takes the CPU"
            document.report(RULE, command, message, severity=Severity.WARNING)
        else:
            document.report(RULE, command, f"{option} needs CUDA: this command fails without it")
        return
    for name, value in command.assigned:
        if is_device_key(name.lower()) and (names_cuda(value) or _DEFAULT.match(value)):
            message = f"{name} is CUDA unless somebody sets it"
            document.report(RULE, command, message, severity=Severity.WARNING)
        elif name == _VISIBLE:
            _visible(document, command, value)


def _option(words: tuple[str, ...]) -> str | None:
    """The option or override that names CUDA (``--device cuda``, ``model.device=cuda``), or asks
    for it (``--cuda``)."""
    for word, following in zip(words, (*words[1:], ""), strict=True):
        key, equals, value = word.partition("=")
        name = key.lstrip("+-").replace("-", "_").rpartition(".")[2]
        if _ASKING.match(word) and following.lower() not in _OFF and not _COMPILER.search(words[0]):
            return word
        if not is_device_key(name):
            continue
        if equals and names_cuda(value.strip("'\"")):
            return word
        if not equals and key.startswith("--") and names_cuda(following):
            return f"{word} {following}"
    return None


def _visible(document: Document, command: Command, value: str) -> None:
    """A number there changes nothing on a Mac; as the only choice that a script gives it does."""
    chooses = any(
        is_device_key(name.lower()) and name != _VISIBLE
        for other in document.commands
        for name, _ in other.assigned
    ) or any("device" in word for other in document.commands for word in other.words)
    # An item of a list shares work out among cards; it offers nobody a choice.
    offered = "$" in value and "[" not in value and not chooses
    message = (
        "CUDA_VISIBLE_DEVICES is the only way to choose a device here: elsewhere nothing is chosen"
        if offered
        else "CUDA_VISIBLE_DEVICES chooses nothing off CUDA"
    )
    severity = Severity.WARNING if offered else Severity.NOTE
    document.report(RULE, command, message, severity=severity)


RULE = Rule(
    code="DEV120",
    name="script-device",
    severity=Severity.ERROR,
    summary="a shell script or Makefile names CUDA as the device",
    why=(
        "The script fails where the program would have chosen a device that is there. A choice that "
        "is made through CUDA_VISIBLE_DEVICES alone cannot name a Mac's GPU or the CPU."
    ),
    remedy=(
        "Leave the option out, or take it from a variable that is `auto` by default; ask which "
        "machine it is (`nvidia-smi`, `uname`) before naming one."
    ),
    invalid=(
        Bad("python infer.py \\\n  --device cuda \\\n  --steps 8", 1, path="infer.sh"),
        Bad(
            'train --tokens="<s1>|<s2>" --text \'a; b\' \\\n  --device="cuda:0" \\\n',
            1,
            path="train.sh",
        ),
        Bad('DEVICE=${DEVICE:-cuda}\npython infer.py --device "$DEVICE"', 1, path="infer.sh"),
        Bad("DEVICE ?= cuda:0\n\nrun:\n\tpython infer.py --device $(DEVICE)", 1, path="Makefile"),
        Bad("CUDA_VISIBLE_DEVICES=0 python infer.py --device cuda", 1, path="infer.sh"),
        Bad("python train.py --cuda --steps 8", 1, path="train.sh"),
        Bad("run:\n\tpython train.py model.device=cuda", 2, path="Makefile"),
        Bad('CUDA_VISIBLE_DEVICES=$1 python infer.py "$2"', 1, path="infer.sh"),
    ),
    valid=(
        Good("python infer.py --steps 8\npython infer.py --device auto", "infer.sh"),
        Good("if command -v nvidia-smi; then\n  python infer.py --device cuda\nfi", "infer.sh"),
        Good("python train.py --no-cuda --steps 8\npython train.py --use_cuda false", "train.sh"),
        Good("command -v nvidia-smi && DEVICE=cuda", "infer.sh"),
        Good("cat <<EOF\n  --device cuda\nEOF\necho --device cuda", "infer.sh"),
        Good("# python infer.py --device cuda", "infer.sh"),
        Good("ifeq ($(shell uname),Linux)\nDEVICE ?= cuda\nendif", "Makefile"),
        Good("python train.py --device cuda", "tests/run.sh"),
    ),
    hooks={"command": _command},
)

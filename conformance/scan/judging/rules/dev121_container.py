"""DEV121: a container that is built on CUDA, or asks for its cards."""

from __future__ import annotations

from conformance.scan.findings import Severity
from conformance.scan.judging.document import Document
from conformance.scan.judging.rule import Bad, Good, Rule
from conformance.scan.knowing.settings import is_device_key, names_cuda
from conformance.scan.reading.files.pieces import Command, Setting


def _command(document: Document, command: Command) -> None:
    words = command.words
    if document.kind == "docker":
        image = " ".join(words[1:])
        if words[0].upper() == "FROM" and (
            "cuda" in image or "nvidia" in image or "nvcr.io" in image
        ):
            document.report(RULE, command, f"the image {words[1]} holds CUDA")
        elif any(
            is_device_key(word.partition("=")[0].strip("-[\",'").lower())
            and (
                names_cuda(word.partition("=")[2].strip("\"',]")) or names_cuda(nxt.strip("\"',]"))
            )
            for word, nxt in zip(words, (*words[1:], ""), strict=True)
        ):
            document.report(RULE, command, "the container runs on CUDA alone")
    elif words[:1] == ("docker",) and any(
        w.startswith(("--gpus", "--runtime=nvidia")) for w in words
    ):
        document.report(RULE, command, "the container asks for NVIDIA's cards")


def _setting(document: Document, setting: Setting) -> None:
    if document.kind == "compose" and (
        (setting.key == "driver" and "devices" in setting.keys and setting.value == "nvidia")
        or (setting.key == "runtime" and setting.value == "nvidia")
    ):
        document.report(RULE, setting, "the service asks for NVIDIA's cards")


RULE = Rule(
    code="DEV121",
    name="cuda-container",
    severity=Severity.NOTE,
    summary="a container is built on CUDA, or asks for NVIDIA's cards",
    why=(
        "Containers on a Mac have no GPU, and one that asks for NVIDIA's does not start; the image is "
        "some gigabytes larger than one for the CPU."
    ),
    remedy=(
        "Make the base image an argument with a CPU image beside it, and keep the request for cards "
        "in a compose file of its own."
    ),
    invalid=(
        Bad("FROM nvidia/cuda:12.4.1-runtime-ubuntu22.04\nRUN true", 1, path="Dockerfile"),
        Bad(
            "services:\n  app:\n    deploy:\n      resources:\n        reservations:\n          devices:\n"
            "            - driver: nvidia\n              count: all",
            7,
            path="docker-compose.yml",
        ),
        Bad("docker run --gpus all image", 1, path="serve.sh"),
    ),
    valid=(
        Good("FROM python:3.12-slim\nRUN true # cuda", "Dockerfile"),
        Good("services:\n  app:\n    image: x  # cuda", "docker-compose.yml"),
    ),
    hooks={"command": _command, "setting": _setting},
)

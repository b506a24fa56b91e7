"""Runs the suite many times quickly: imports the libraries once, then forks for each run.

Reads a line of JSON each time, pytest's arguments and the folder of the suite, and answers with the
exit status. Output of the runs goes to the file that the environment names.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

import conformance

LIBRARIES = (
    "accelerate",
    "diffusers.models.autoencoders.autoencoder_oobleck",
    "diffusers.models.transformers.ace_step_transformer",
    "diffusers.pipelines.ace_step",
    "diffusers.schedulers",
    "gradio",
    "hypothesis.extra.numpy",
    "llguidance",
    "soundfile",
    "tokenizers",
    "torch._dynamo",
    "transformers.models.qwen3.modeling_qwen3",
    "xdist",
    "conformance.simulate",
    "conformance.tripwire",
    "acestep.handler",
)


def main() -> None:
    """Serve until the input ends."""
    # A child may not inherit threads; with one there are none to inherit.
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            importlib.import_module(name)
    # Every run ends with several collections, which need not go through the libraries.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def _run(arguments: list[str], suite: str) -> None:
    # A copy of the suite may be spoilt, of which nothing is imported yet.
    conformance.__path__ = [str(Path(suite).parent)]
    log = os.open(Path(os.environ["SUITE_LOG"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(int(status))


if __name__ == "__main__":
    main()

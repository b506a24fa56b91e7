"""Runs in each Python process of a simulated command: waits for torch, then adds the device."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def _chain() -> None:
    """Runs the sitecustomize that this one hides, if the environment has one."""
    here = str(Path(__file__).parent)
    elsewhere = [entry for entry in sys.path if entry != here]
    spec = PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def _arm() -> None:
    """Loads the hook from beside this folder, without importing torch."""
    path = Path(__file__).parents[1] / "hook.py"
    spec = importlib.util.spec_from_file_location("_simulated_mps_hook", path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.arm()


_chain()
_arm()

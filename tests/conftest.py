"""What every test shares: an environment of its own, and small checkpoints on disk."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# The same inputs in every run, and no limit of time: speed is for benchmarks.
settings.register_profile("acestep", deadline=None, derandomize=True)
settings.load_profile("acestep")
# Before any test module imports a library that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for _name in (
    "ACESTEP_CHANNELS_LAST",
    "ACESTEP_LANGUAGE_KERNELS",
    "ACESTEP_CHECKPOINTS",
    "ACESTEP_DEVICE",
    "ACESTEP_DEVICE_MEMORY_GB",
    "MAX_CUDA_VRAM",
):
    os.environ.pop(_name, None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers are the parallelism; threads of several workers would fight for the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The suite's plugin has imported PyTorch by now, which has read the variable already.
    torch.set_num_threads(1)
# Large tensors come and go in the reference computations; huge pages halve their cost.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
TESTS = Path(__file__).parent
# One cache for all workers of a run and for the next run: checkpoints are made once, in
# folders that their recipes' versions name.
CACHE = Path(tempfile.gettempdir()) / "acestep-test-cache"
NARROW = CACHE / "narrow-3"
os.environ.setdefault("ACESTEP_CACHE", str(NARROW))


class Together(LoadScopeScheduling):
    """Gives one worker all tests that share what takes long to start: a server of forks, a page.

    (The groups of pytest-xdist 3.8 do nothing with pytest 9.1, where ids are no text.) In a browser
    the page waits more than it works, so that two do so side by side.
    """

    forks = frozenset(
        file.name for file in TESTS.rglob("test_*.py") if "run_suite" in file.read_text("utf-8")
    )

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        if "gradio_ui" in file.parts and file.name != "test_ui_browser.py":
            return "page"
        return "forks" if file.name in self.forks else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    """Distribute tests as above, where nothing else was asked for."""
    return Together(config, log) if config.getoption("dist") == "load" else None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Put a narrow checkpoint of seeded weights where the built-in one is looked for.

    Few tests hear what they make, and songs take a tenth of the time; those that judge the
    music itself ask for `trained`.
    """
    distributes = session.config.getoption("numprocesses", None)
    if not distributes or hasattr(session.config, "workerinput"):
        from acestep import demo

        target = Path(os.environ["ACESTEP_CACHE"]) / f"demo-{demo.RECIPE_VERSION}"
        if target.parent == NARROW and not target.is_dir():
            demo.make_folder(target, _build_narrow)


def pytest_collection_finish() -> None:
    """Leave what is imported out of the collections with which songs end on the page."""
    gc.collect()
    gc.freeze()
    # pytest hangs a handler on each logger that keeps its words to itself, six times a test, which
    # takes a small test half its time: fifty such are PyTorch's compiler's.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.") and isinstance(logger, logging.Logger):
            logger.propagate = True


def _build_narrow(folder: Path) -> None:
    from acestep.demo import parts, recipe

    tokenizer = parts.start_pipeline(parts.WEIGHTS).tokenizer
    shape = replace(recipe.BUILTIN, latent=8, decoder_channels=8)
    with parts.without_bars():
        recipe.make_pipeline(shape, tokenizer=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="session")
def trained() -> Path:
    """The built-in checkpoint as it ships, for tests that judge the music itself."""
    from acestep import demo

    return demo.path(CACHE)


@pytest.fixture(autouse=True)
def _no_leaking_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in a folder of one's own, so that no checkpoint or song is found by chance."""
    monkeypatch.chdir(tmp_path)

"""Defects planted in the language model's kernels: each must be caught by their tests.

Run by hand, on a Hopper GPU (half a minute) or interpreted (a quarter of an hour):

    python -m pytest tests/acestep/engines/torch/test_planted_kernels.py -m soak -n 4
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
STEP = "acestep/engines/torch/_language_kernels.py"
CHOICE = "acestep/engines/torch/_choice_kernels.py"
TESTS = "tests/acestep/engines/torch/test_language_kernels.py"

_LONGEST = 900
"""Seconds: a kernel that never ends would hold the GPU for as long as its process lives."""

DEFECTS = {
    "guidance the wrong way round": (
        CHOICE, "other + guidance * (value - other)", "value + guidance * (value - other)", "drawn",
    ),
    "bits of the mask in another order": (
        CHOICE, "(word >> (columns % _MASK_BITS))", "(word >> (columns // _MASK_BITS % 32))", "drawn",
    ),
    "top_p of twice as much": (
        CHOICE, "while (before >= enough) &", "while (before > 2.0 * enough) &", "drawn",
    ),
    "another noise": (CHOICE, "bits >> 9", "bits >> 10", "drawn"),
    "a token that does not see itself": (
        STEP, "columns <= position)[None, :], score", "columns < position)[None, :], score", "steps",
    ),
    "rotation the wrong way": (
        STEP, "first * cosine - second * sine, second * cosine + first * sine",
        "first * cosine + second * sine, second * cosine - first * sine", "steps",
    ),
    "a part of a product left out": (
        STEP, "tl.static_range(1, SPLITS)", "tl.static_range(1, SPLITS - 1)", "steps",
    ),
    "parts of the attention not brought to one scale": (
        STEP, "total = total * before[:, None] + tl.reduce", "total = total + tl.reduce", "steps",
    ),
    "a norm over twice the width": (
        STEP, "tl.rsqrt(power / width + eps)", "tl.rsqrt(power / (2 * width) + eps)", "steps",
    ),
    "a counter that does not begin anew": (
        STEP, "tl.store(arrivals + counter, 0)", "tl.store(arrivals + counter, SPLITS)", "steps",
    ),
    "queries of another group": (
        STEP, "queries = row + (head * group + member) * DIM", "queries = row + (head + member) * DIM",
        "steps",
    ),
    "squares of all blocks in one place": (
        STEP, "tl.store(squares + block * room + slots", "tl.store(squares + slots", "steps",
    ),
    "a prompt's parts not brought to one scale": (
        STEP, "total = total * before[:, None] + made", "total = total + made", "steps",
    ),
    "a prompt that sees what follows": (
        STEP, "seen = own[:, None] & (columns[None, :] <= position[:, None])",
        "seen = own[:, None] & (columns[None, :] <= reach)", "steps",
    ),
    "a prompt that sees another": (
        STEP, "own = (sequence == current) & (position >= 0)", "own = position >= 0", "steps",
    ),
    "the slots of a later tile taken for the first ones": (
        STEP, "        slots += tile_of * SLOTS\n", "", "steps or prompt",
    ),
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.timeout(_LONGEST + 60)
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_caught(name: str, tmp_path: Path) -> None:
    file, right, wrong, which = DEFECTS[name]
    for folder in ("acestep", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.npz")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert right in text, f"{name}: the line it is planted in has changed"
    (tmp_path / file).write_text(text.replace(right, wrong), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", TESTS]
    done = subprocess.run(
        [*command, "-k", which], cwd=tmp_path, env={**os.environ, "PYTHONPATH": _path(tmp_path)},
        capture_output=True, text=True, check=False, timeout=_LONGEST,
    )  # fmt: skip
    assert done.returncode == 1, f"{name}: {done.stdout[-2000:]}{done.stderr[-500:]}"


def _path(tree: Path) -> str:
    """The copy before all else that Python is told of."""
    return os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])

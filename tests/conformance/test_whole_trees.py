"""Other trees: one that has S1 to S7 as they were, the same one repaired, and what trees lack."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from conformance.trees.scratch import PREFIX, sweep

FACTS = "test_facts.py"
SITES = tuple(f"S{number}" for number in range(1, 8))
# Of the broken tree, what is right where the device is the CPU: it is CUDA or the CPU.
RIGHT_ON_CPU = ("S4", "S6")

SCORER = """
import torch

class MusicLyricScorer:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def calculate_score(self, energy_matrix, type_mask, path_coords, time_weight=0.01,
                        overlap_frames=9.0, instrumental_weight=1.0):
        energy = {placed}
        path = torch.as_tensor(path_coords).long().cpu()
        coverage = float((energy.amax(dim=1) > 0.1).float().mean())
        confidence = float(energy[path[:, 0], path[:, 1]].mean())
        score = round(coverage**2 * confidence, 4)
        return {{"coverage": coverage, "monotonicity": 1.0, "confidence": confidence,
                "lyrics_score": score}}
"""
HANDLER = """
import torch

class AceStepHandler:
    def __init__(self):
        self.device = "cpu"

    def _is_on_target_device(self, tensor, target_device):
        target = torch.device(target_device)
        {test}
"""
CLI = """
import argparse

def main(argv=None):
    parser = argparse.ArgumentParser(prog="acestep")
    parser.add_argument("--device", choices={devices}, default="auto", help="where to run")
    parser.add_argument("--backend", choices=["pt", "vllm"], default={backend})
    arguments = parser.parse_args(argv)
    return 0

if __name__ == "__main__":
    raise SystemExit(main())
"""
LLM = """
import torch

class LLMHandler:
    device = "cpu"
    llm_backend = None

    def initialize(self, checkpoint_dir, lm_model_path, backend="pt", device="auto",
                   offload_to_cpu=False, dtype=None):
        if backend == "vllm":
            return "vllm needs CUDA", False
        {choice}
        self.llm_backend = backend
        return "ready", True
"""
MEMORY = """
import torch

TIERS = [(4, "tier1", 180, 180, 1, 1), (6, "tier2", 360, 360, 1, 1), (8, "tier3", 240, 360, 1, 2),
         (12, "tier4", 240, 360, 2, 4), (16, "tier5", 240, 360, 2, 4), (24, "tier6", 480, 480, 4, 8),
         (float("inf"), "unlimited", 600, 600, 8, 8)]

class GPUConfig:
    def __init__(self, row):
        (_, self.tier, self.max_duration_with_lm, self.max_duration_without_lm,
         self.max_batch_size_with_lm, self.max_batch_size_without_lm) = row

def get_gpu_memory_gb():
    import os
    if os.environ.get("MAX_CUDA_VRAM"):
        return float(os.environ["MAX_CUDA_VRAM"])
    {probe}

def get_gpu_tier(gb):
    return next(row for row in TIERS if gb <= row[0])[1]

def get_gpu_config(gb=None):
    gb = get_gpu_memory_gb() if gb is None else gb
    return GPUConfig(next(row for row in TIERS if gb <= row[0]))

def check_duration_limit(seconds, config, lm=False):
    limit = config.max_duration_with_lm if lm else config.max_duration_without_lm
    return seconds <= limit, f"limit {{limit}}"

def check_batch_size_limit(batch, config, lm=False):
    limit = config.max_batch_size_with_lm if lm else config.max_batch_size_without_lm
    return batch <= limit, f"limit {{limit}}"
"""
TRAINER = """
import torch

class Trainer:
    def __init__(self, model, device):
        self.model, self.device = model.to(device), device

    def training_step(self, batch):
        latents = batch["latents"].to(self.device)
        with torch.autocast({kind}, dtype=torch.bfloat16):
            velocity = self.model(latents)
        return (velocity.float() - latents).square().mean()
"""

BROKEN = {
    "dit_alignment_score.py": SCORER.format(
        placed='torch.as_tensor(energy_matrix).to("cuda").double().cpu()'
    ),
    "handler.py": HANDLER.format(
        test='return tensor.device.type == ("cpu" if target.type == "cpu" else "cuda")'
    ),
    "acestep_v15_pipeline.py": CLI.format(devices=["auto", "cuda", "cpu"], backend='"vllm"'),
    "llm_inference.py": LLM.format(
        choice='self.device = device if device != "auto" else '
        '("cuda" if torch.cuda.is_available() else "cpu")'
    ),
    "gpu_config.py": MEMORY.format(
        probe="return (torch.cuda.get_device_properties(0).total_memory / 2**30"
        " if torch.cuda.is_available() else 0.0)"
    ),
    "training/trainer.py": TRAINER.format(kind='"cuda"'),
}
REPAIRED = {
    "dit_alignment_score.py": SCORER.format(placed="torch.as_tensor(energy_matrix).float().cpu()"),
    "handler.py": HANDLER.format(
        test="return tensor is not None and (tensor.device.type, tensor.device.index or 0) == "
        "(target.type, target.index or 0)"
    ),
    "acestep_v15_pipeline.py": CLI.format(devices=["auto", "cuda", "mps", "cpu"], backend='"pt"'),
    "llm_inference.py": LLM.format(
        choice="here = torch.accelerator.current_accelerator(check_available=True)\n"
        '        best = here.type if here is not None else "cpu"\n'
        '        if device not in ("auto", "cpu", best):\n'
        '            return f"{device} is not here", False\n'
        '        self.device = best if device == "auto" else device'
    ),
    "gpu_config.py": MEMORY.format(
        probe="here = torch.accelerator.current_accelerator(check_available=True)\n"
        "    return torch.accelerator.get_memory_info()[1] / 2**30 if here is not None else 0.0"
    ),
    "training/trainer.py": TRAINER.format(kind="torch.device(self.device).type"),
}


def written(root: Path, files: dict[str, str]) -> Path:
    """A tree of these files."""
    for name, text in files.items():
        file = root / "acestep" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


def test_a_tree_with_all_seven_sites_fails_in_all_seven(run_suite: Any, tmp_path: Path) -> None:
    root = written(tmp_path, BROKEN)
    before = sorted(root.rglob("*"))
    wanted: dict[str, Any] = {"tree": root, "device": "cpu,mps-sim", "tb": "auto"}
    found = run_suite(FACTS, **wanted, write_expect=tmp_path / "known")
    assert found.status == 1, found.log
    for site in SITES:
        assert found.cell(site) == ("pass" if site in RIGHT_ON_CPU else "fail"), found.log
        assert found.cell(site, 1) == "fail", found.log
    assert sorted(root.rglob("*.py")) == [f for f in before if f.suffix == ".py"]
    assert not list(root.rglob("__pycache__")), "something was written into the tree"
    assert len(found.log.splitlines()) < 60, found.log
    # What failed is expected from now on; for another reason it is news.
    scorer = root / "acestep" / "dit_alignment_score.py"
    scorer.write_text(scorer.read_text().replace('"cuda"', '"xpu"'))
    again = run_suite(FACTS, tree=root, device="cpu,mps-sim", expect=tmp_path / "known")
    assert again.status == 1
    assert {case["rows"][0] for case in again.failed} == {"S1"}, again.log


def test_the_repaired_tree_fails_in_none(run_suite: Any, tmp_path: Path) -> None:
    found = run_suite(FACTS, tree=written(tmp_path, REPAIRED), device="cpu,mps-sim")
    assert {site: found.cell(site) for site in SITES} == dict.fromkeys(SITES, "pass"), found.log
    assert {site: found.cell(site, 1) for site in SITES} == dict.fromkeys(SITES, "pass"), found.log
    assert found.status == 0, found.log


def test_what_a_tree_lacks_is_absent(run_suite: Any, tmp_path: Path) -> None:
    files = {"gpu_config.py": "import no_such_library\n" + REPAIRED["gpu_config.py"]}
    found = run_suite(FACTS, tree=written(tmp_path, files))
    assert found.status == 0, found.log
    assert found.cell("S6") == "pass"
    assert {found.cell(site) for site in SITES if site != "S6"} == {"absent"}
    assert "python -m pip install no-such-library" in found.log


def test_a_tree_without_a_command_for_many_songs_has_none(run_suite: Any, tmp_path: Path) -> None:
    """Of our own surface it has one module, by which all our cases are asked of it."""
    root = written(tmp_path, REPAIRED | {"device/choosing.py": ""})
    found = run_suite("test_many_songs.py", tree=root)
    assert {case["outcome"] for case in found.cases} == {"absent"}, found.log
    assert found.status == 0


def test_what_never_ends_is_ended(run_suite: Any, tmp_path: Path) -> None:
    waiting = "try:\n    while True: pass\nexcept Exception: pass\n"
    root = written(tmp_path, {"gpu_config.py": waiting + "# total_memory"})
    found = run_suite(f"{FACTS}::test_an_accelerator_counts", tree=root, patience=0.3)
    assert found.status == 1, found.log
    (case,) = found.failed
    assert case["place"] == "acestep/gpu_config.py:2"
    assert case["message"] == "it was still running after 0.3 s"


def test_a_message_is_the_same_in_every_run(run_suite: Any, tmp_path: Path) -> None:
    """What was frozen still holds, though every run has a folder of its own."""
    asks = "import os\ndef get_gpu_memory_gb():\n    open(os.path.join(os.getcwd(), 'card'))\n"
    root = written(tmp_path / "tree", {"gpu_config.py": asks + "    open(__file__ + '.card')\n"})
    case = f"{FACTS}::test_an_accelerator_counts"
    first = run_suite(case, tree=root, write_expect=tmp_path / "known")
    (failed,) = first.failed
    assert "conformance-run-" not in failed["message"]
    assert run_suite(case, tree=root, expect=tmp_path / "known").status == 0


def test_nothing_of_this_repository_leaks_in(run_suite: Any, tmp_path: Path) -> None:
    """A module that only this repository has stays out of reach, package file or not."""
    files = REPAIRED | {"gpu_config.py": "from acestep.device import resolve\n"}
    for init in ({}, {"__init__.py": ""}):
        found = run_suite(FACTS, tree=written(tmp_path, files | init))
        assert found.status == 1
        assert found.cell("S6") == "broken"
        (message,) = {c["message"] for c in found.cases if c["outcome"] == "broken"}
        assert "no module named 'acestep.device' at acestep/gpu_config.py:1" in message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_the_tree_clean(
    run_suite: Any, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by its own tree, in the middle of a fact; what a kill leaves, the next run sweeps."""
    told = tmp_path / "told"
    killing = (
        "import os, pathlib\n"
        f"pathlib.Path({str(told)!r}).write_text(__file__)\n"
        "pathlib.Path('left').write_text('in the working folder')\n"
        "pathlib.Path(__file__).with_name('beside.py').write_text('')\n"
        f"os.kill(os.getpid(), {int(number)})\n"
    )
    root = written(tmp_path / "tree", REPAIRED | {"gpu_config.py": killing})
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    found = run_suite(f"{FACTS}::test_an_accelerator_counts", tree=root)
    assert found.status == -number, found.log
    said = subprocess.run(
        [*git, "status", "--porcelain", "--ignored"], capture_output=True, check=True
    )
    assert said.stdout == b""
    copied = Path(told.read_text())
    assert not copied.is_relative_to(root)
    folder = next(above for above in copied.parents if above.name.startswith(PREFIX))
    assert folder.exists() == (number == signal.SIGKILL)
    monkeypatch.setattr(tempfile, "tempdir", str(folder.parent))
    sweep()
    assert not folder.exists()

"""A song from end to end on a tree that carries its own model classes, whole and broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trees_made import tree

from conformance.report import Case, Machine, Part, Report
from conformance.trees import __main__ as side_by_side

CONFIGURATION = """
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "tiny_music"

    def __init__(self, hidden_size=2048, num_hidden_layers=24, **options):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        super().__init__(**options)
"""
MODEL = """
import torch
from transformers import PreTrainedModel
from .configuration_tiny import TinyConfig

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def generate_audio(self, latents):
        return self.layer(latents)
"""
HANDLER = """
import os
import torch
from diffusers.models import AutoencoderOobleck
from acestep.models.turbo.modeling_tiny import TinyModel

class AceStepHandler:
    def initialize_service(self, project_root, config_path, device="auto"):
        folder = os.path.join(project_root, "checkpoints")
        self.device = device
        self.model = TinyModel.from_pretrained(os.path.join(folder, config_path)).to({where})
        self.vae = AutoencoderOobleck.from_pretrained(os.path.join(folder, "vae")).to(device)
        path = os.path.join(folder, config_path, "silence_latent.pt")
        self.silence = torch.load(path, weights_only=True).transpose(1, 2).to(device)
        return "ready", True
"""
INFERENCE = """
import dataclasses
import torch

@dataclasses.dataclass
class GenerationParams:
    caption: str = ""
    duration: float = 30.0

@dataclasses.dataclass
class GenerationConfig:
    batch_size: int = 2

@dataclasses.dataclass
class Result:
    success: bool
    audios: list
    error: str = ""

@torch.no_grad()
def generate_music(dit_handler, llm_handler, params, config, save_dir=None):
    latents = dit_handler.model.generate_audio(dit_handler.silence[:, :5])
    audio = dit_handler.vae.decode(latents.transpose(1, 2)).sample[0]
    {after}
    return Result(True, [{{"tensor": audio * {gain}}}])
"""


def with_models(root: Path, where: str = "device", after: str = "pass", gain: str = "1.0") -> Path:
    """A tree that makes songs, or fails in one of its places."""
    tree(root, "first", without=("handler", "page"))
    for name, text in {
        "models/turbo/configuration_tiny.py": CONFIGURATION,
        "models/turbo/modeling_tiny.py": MODEL,
        "handler.py": HANDLER.format(where=where),
        "inference.py": INFERENCE.format(after=after, gain=gain),
    }.items():
        file = root / "acestep" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip("\n"))
    return root


@pytest.mark.parametrize("target", ["cpu", "mps-sim"])
def test_a_whole_tree_makes_a_song(verdicts: Any, tmp_path: Path, target: str) -> None:
    outcome, place, sentence = verdicts(with_models(tmp_path / "tree"), target, "A1")["A1"]
    assert outcome == "pass", sentence
    assert (place, sentence) == (
        "acestep/inference.py:19",
        f"0.2 s of song on {target.partition('-')[0]}",
    )


@pytest.mark.parametrize(
    ("broken", "target", "place", "told"),
    [
        ({"where": '"cuda"'}, "mps-sim", "acestep/handler.py:10", "CUDA"),
        ({"after": "audio.double()"}, "mps-sim", "acestep/inference.py:23", "float64"),
        ({"gain": "float('nan')"}, "cpu", "acestep/inference.py:19", "not finite"),
    ],
)
def test_what_breaks_a_song_is_named(
    verdicts: Any, tmp_path: Path, broken: dict[str, str], target: str, place: str, told: str
) -> None:
    outcome, where, sentence = verdicts(with_models(tmp_path / "t", **broken), target, "A1")["A1"]
    assert (outcome, where) == ("fail", place), sentence
    assert told in sentence


def test_without_model_classes_it_is_blocked(verdicts: Any, tmp_path: Path) -> None:
    root = with_models(tmp_path / "tree")
    (root / "acestep" / "models" / "turbo" / "modeling_tiny.py").unlink()
    (root / "acestep" / "handler.py").write_text("class AceStepHandler:\n    pass\n")
    outcome, _, sentence = verdicts(root, "cpu", "A1")["A1"]
    assert outcome == "blocked"
    assert sentence.startswith("needs weights: the tree takes its model classes from a checkpoint")


def test_trees_side_by_side() -> None:
    def report(outcome: str) -> Report:
        machine = Machine(
            "Linux", "3.12", {}, {"cpu": "", "mps-sim": ""}, "/tree", "now", kin=False
        )
        name, place = "test_facts.py::test_x", "acestep/llm_inference.py:336"
        cases = [Case(name, "cpu", "pass", 0, ["S4"], [], "right", "acestep/llm_inference.py:9")]
        cases.append(Case(name, "mps-sim", outcome, 0, ["S4"], [], "as told", place))
        return Report([Part(machine, cases)])

    lines = side_by_side.table({"old": report("fail"), "new": report("pass"), "gone": None})
    assert lines[0] == "| | old | new | gone |"
    row = "pass on cpu, fail on mps-sim: llm_inference.py:336 | pass | not asked |"
    assert lines[2] == f"| S4 the LM takes this machine's device | {row}"
    both = report("fail")
    first, second = both.parts[0].cases
    first.outcome, first.place, second.place = "fail", "acestep/a.py:8", "acestep/a.py:8 and :6"
    assert side_by_side.table({"old": both})[2].endswith("| fail: a.py:8 and :6 |")

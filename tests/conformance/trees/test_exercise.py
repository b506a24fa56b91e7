"""What a run enters of a tree's functions, and a checkpoint out of a tree's own classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from trees_made import tree

from conformance.tree import Blocked, Tree
from conformance.trees import checkpoint, exercise
from conformance.trees.exercise import Entered
from conformance.trees.surface import shares

MORE = """
import dataclasses

@dataclasses.dataclass
class Settings:
    size: int
    def doubled(self) -> int:
        return 2 * self.size

def of_settings(settings: Settings, device: str, path: str):
    assert settings.size and device == "cpu" and path
    return inner(settings)

def inner(settings):
    return settings.doubled()

def acts():
    torch.cuda.empty_cache()

def asks():
    return torch.cuda.is_available() and torch.cuda.get_device_name()

def never_ends():
    while True:
        pass

def download_everything():
    raise SystemExit("this was called")
"""


@pytest.mark.usefixtures("other_trees")
def test_public_functions_are_entered_and_acts_are_told(tmp_path: Path) -> None:
    """In this process, which a run has another for."""
    root = tree(tmp_path / "tree", "first", without=("page", "command", "trainer"), extra=MORE)
    for name in ("placing", "dit_alignment_score", "llm_inference"):
        file = root / "acestep" / f"{name}.py"
        file.write_text(file.read_text().replace(MORE, ""))
    made = Tree(root, own=False)
    log = tmp_path / "log.json"
    exercise.main([str(root), "cpu", str(log), str(tmp_path)])
    found = json.loads(log.read_text())
    entered = {name.rpartition(":")[2] for name in found["entered"]}
    assert {"of_settings", "inner", "Settings.doubled", "acts", "asks", "never_ends"} <= entered
    assert "download_everything" not in entered
    (told,) = found["touches"]
    assert told.startswith("acestep/gpu_config.py:19 in acts: torch.cuda.empty_cache")
    (config,) = [share for share in shares(made, found["entered"]) if share.area == "config"]
    assert (config.module, config.entered, config.public) == ("gpu_config", 7, 8)


def test_what_is_entered_is_seen_on_threads_too(tmp_path: Path) -> None:
    made = Tree(tmp_path, own=False)
    watch = Entered(made)
    code = compile("def f():\n    return 1\n", str(tmp_path / "acestep" / "a.py"), "exec")
    space: dict[str, object] = {}
    exec(code, space)
    with watch.watching():
        space["f"]()  # type: ignore[operator]
    assert "acestep/a.py:f" in watch.names


def test_a_tree_without_model_classes_needs_weights(tmp_path: Path) -> None:
    made = Tree(tree(tmp_path / "tree", "first"), own=False)
    assert not checkpoint.has_models(made)
    with pytest.raises(Blocked, match="needs weights: the tree takes its model classes"):
        checkpoint.make(made, tmp_path)


def test_a_tiny_language_model_can_be_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    state = torch.random.get_rng_state()
    folder = checkpoint.make_language_model(tmp_path) / checkpoint.LANGUAGE
    assert torch.equal(torch.random.get_rng_state(), state)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("<|im_start|>warm é", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(tokens[0]) == "<|im_start|>warm é"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(tokens).logits.isfinite().all()

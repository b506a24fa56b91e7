"""Tests of finding, naming and fetching checkpoints."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from acestep import demo
from acestep.checkpoint.downloading import download
from acestep.checkpoint.files import most_stored, read_json, weight_files
from acestep.checkpoint.finding import find, identify, local_checkpoints
from acestep.checkpoint.folders import cache_dir, checkpoint_roots
from acestep.checkpoint.kinds import Checkpoint, stored_in
from acestep.checkpoint.names import SOURCES
from acestep.errors import CheckpointError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo_folder: Path) -> None:
    """An empty cache that has the built-in checkpoint already, and no Hub cache."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / demo_folder.name).symlink_to(demo_folder)
    monkeypatch.setenv("ACESTEP_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def fake_diffusers(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "AceStepPipeline"}')
    return folder


def fake_original(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"audio_acoustic_hidden_dim": 64}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_demo_and_auto_without_a_real_one() -> None:
    for name in ("demo", "auto", ""):
        checkpoint = find(name)
        assert checkpoint.builtin
        assert checkpoint.layout == "diffusers"
        assert (checkpoint.path / "model_index.json").is_file()


def test_auto_prefers_the_best_real_one(tmp_path: Path) -> None:
    root = tmp_path / "cache" / "checkpoints"
    for name in ("acestep-v15-base", "acestep-v15-sft"):
        fake_original(root / name)
    assert find("auto").name == "acestep-v15-sft"
    fake_original(root / "acestep-v15-turbo")
    assert find("auto").name == "acestep-v15-turbo"
    fake_diffusers(root / "acestep-v15-xl-turbo-diffusers")
    found = find("auto")
    assert (found.name, found.layout) == ("acestep-v15-xl-turbo-diffusers", "diffusers")
    assert not found.builtin
    assert find("turbo").path == root / "acestep-v15-turbo"
    assert find("acestep-v15-base").layout == "original"


def test_roots_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, project = tmp_path / "listed", tmp_path / "project"
    monkeypatch.setenv("ACESTEP_CHECKPOINTS", f"{listed}{os.pathsep}{os.pathsep}")
    roots = checkpoint_roots(project)
    assert roots[:3] == [listed, project / "checkpoints", project]
    assert roots[-1] == tmp_path / "cache" / "checkpoints"
    fake_diffusers(project / "checkpoints" / "mine")
    assert [c.name for c in local_checkpoints(project)] == ["mine"]
    assert find("mine", project).path == project / "checkpoints" / "mine"


def test_a_folder_by_path(tmp_path: Path) -> None:
    assert find(str(fake_diffusers(tmp_path / "here"))).path == tmp_path / "here"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: not an ACE-Step 1.5 checkpoint"):
        find(str(tmp_path / "empty"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        find(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("turbo", "acestep download turbo"),
        ("xl-turbo", "acestep download xl-turbo"),
        ("acestep-v15-xl-sft", "acestep download xl-sft"),
        ("acestep-v15-xl-base-diffusers", "acestep download xl-base"),
        ("turbo-continuous", "acestep download turbo-continuous"),
        ("ACE-Step/some-model", "acestep download ACE-Step/some-model"),
        ("no-such-thing", "one of: auto, demo, turbo, base, sft, xl-turbo"),
        ("/no/such/folder", "no checkpoint folder"),
    ],
)
def test_what_is_not_here_says_what_to_do(name: str, expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find(name)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    other = fake_original(tmp_path / "qwen")
    (other / "config.json").write_text('{"hidden_size": 64}')
    assert identify(other) is None
    assert identify(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "not readable as JSON"), ("[]", "expected a JSON object")]
)
def test_broken_json_names_the_file(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_json(file)
    assert str(file) in str(caught.value)
    with pytest.raises(CheckpointError, match="missing file"):
        read_json(tmp_path / "none.json")


def test_shards(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(CheckpointError, match="no weights here"):
        weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    (tmp_path / "one.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"two.safetensors: missing; .* names it"):
        weight_files(tmp_path)
    (tmp_path / "two.safetensors").write_bytes(b"")
    names = [file.name for file in weight_files(tmp_path)]
    assert names == ["one.safetensors", "two.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        weight_files(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="has no 'weight_map'"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["turbo", "base", "xl-turbo", "someone/something"])
def test_download_offline_is_one_clear_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot reach the Hugging Face Hub") as caught:
        download(name, tmp_path / "to")
    assert "it resumes" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_short_name_is_found_in_both_layouts(name: str, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "checkpoints"
    fake_original(root / f"acestep-v15-{name}")
    assert find(name) == find(f"acestep-v15-{name}")
    assert find(name).layout == "original"
    shutil.rmtree(root / f"acestep-v15-{name}")
    fake_diffusers(root / f"acestep-v15-{name}-diffusers")
    assert find(name).layout == "diffusers"
    other = "turbo" if name != "turbo" else "turbo-shift1"
    with pytest.raises(CheckpointError, match=f"acestep download {other}"):
        find(other)


def test_which_files_a_short_name_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, list[str] | None]] = []

    def fetch(repository: str, local_dir: Path, allow_patterns: list[str] | None) -> None:
        asked.append((repository, local_dir.name, allow_patterns))
        if repository.endswith("-diffusers"):
            fake_diffusers(local_dir)
        elif allow_patterns is None:
            fake_original(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    shared = ("ACE-Step/Ace-Step1.5", "to", ["vae/*", "Qwen3-Embedding-0.6B/*"])
    assert download("turbo-shift3", tmp_path / "to").layout == "original"
    name = "acestep-v15-turbo-shift3"
    assert asked == [(f"ACE-Step/{name}", name, None), shared]
    asked.clear()
    assert download("xl-sft", tmp_path / "to").layout == "diffusers"
    assert download("xl-sft", tmp_path / "to", "original").layout == "original"
    name = "acestep-v15-xl-sft"
    assert asked == [
        (f"ACE-Step/{name}-diffusers", f"{name}-diffusers", None),
        (f"ACE-Step/{name}", name, None),
        shared,
    ]
    with pytest.raises(CheckpointError, match="'sft' is not published in diffusers layout"):
        download("sft", tmp_path / "to", "diffusers")


def test_download_of_a_nonsense_name() -> None:
    with pytest.raises(CheckpointError, match="unknown checkpoint 'nonsense'"):
        download("nonsense")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACESTEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "acestep"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "acestep"


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_two_processes_build_the_demo_at_once(tmp_path: Path, trained: Path) -> None:
    cache = tmp_path / "fresh"
    fork = multiprocessing.get_context("fork")
    both = fork.Barrier(2)

    def build() -> None:
        both.wait()
        assert demo.path(cache) == cache / trained.name

    builders = [fork.Process(target=build) for _ in range(2)]
    try:
        for builder in builders:
            builder.start()
        for builder in builders:
            builder.join(120)
        assert [builder.exitcode for builder in builders] == [0, 0]
    finally:
        for builder in builders:
            builder.kill()
    assert [entry.name for entry in cache.iterdir()] == [trained.name]
    # The same bytes on every build.
    for file in sorted(trained.rglob("*.safetensors")):
        twin = cache / trained.name / file.relative_to(trained)
        assert twin.read_bytes() == file.read_bytes(), file.name


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acestep.demo import parts

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "build_trained", fail)
    with pytest.raises(KeyboardInterrupt):
        demo.path(tmp_path / "fresh")
    assert list((tmp_path / "fresh").iterdir()) == []


def test_hub_cache_is_found(tmp_path: Path) -> None:
    """A repository that huggingface_hub has in its own cache is used from there."""
    folder = tmp_path / "hub" / "models--someone--song"
    commit = "a" * 40
    snapshot = folder / "snapshots" / commit
    fake_diffusers(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    try:
        found = find("someone/song")
        assert (found.path, found.name) == (snapshot, "song")
    finally:
        shutil.rmtree(folder)


def test_what_a_checkpoint_is_stored_in(tmp_path: Path) -> None:
    """Most of its numbers decide; of what cannot be read nothing is said here."""
    file = tmp_path / "model.safetensors"
    assert most_stored(tmp_path) == ""
    tensors = {"a": torch.zeros(8, dtype=torch.bfloat16), "b": torch.zeros(3), "c": torch.zeros(2)}
    save_file(tensors, file)
    assert most_stored(tmp_path) == most_stored(file) == "BF16"
    assert stored_in(Checkpoint("x", tmp_path, "original")) == "BF16"
    assert stored_in(Checkpoint("x", tmp_path, "diffusers")) == ""
    file.write_bytes(file.read_bytes()[:-1])
    assert most_stored(file) == ""

"""A run keeps to itself: no network, a home of its own, and a Mac only for those who are asked."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance.report_facts import pip_line
from conformance.simulate.identity import as_mac
from conformance.trees import shield
from conformance.trees.checkouts import CheckoutError, export


def test_the_network_is_refused_and_this_machine_is_not() -> None:
    tried: list[str] = []
    with shield.no_network(lambda host, frame: tried.append(f"{host} {frame.f_code.co_name}")):
        for host in ("example.org", "192.0.2.1"):
            with pytest.raises(shield.NetworkRefusedError, match=host):
                socket.create_connection((host, 443), timeout=0.1)
        with pytest.raises(shield.NetworkRefusedError):
            socket.gethostbyname("example.net")
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as letters,
            pytest.raises(shield.NetworkRefusedError),
        ):
            letters.sendto(b"x", ("192.0.2.2", 53))
        with socket.socket() as ours, socket.socket() as other:
            ours.bind(("127.0.0.1", 0))
            ours.listen()
            other.connect(ours.getsockname())
    assert [line.split()[0] for line in tried] == [
        "example.org",
        "192.0.2.1",
        "example.net",
        "192.0.2.2",
    ]
    assert "connect" not in vars(socket.socket)


def test_home_and_working_folder_are_lent(tmp_path: Path) -> None:
    before, home = Path.cwd(), os.environ.get("HOME")
    with shield.own_home(tmp_path):
        assert Path.home() == tmp_path / "home"
        Path("left").write_text("here")
    assert (Path.cwd(), os.environ.get("HOME")) == (before, home)
    assert (tmp_path / "work" / "left").exists()


def test_a_copy_leaves_weights_and_history_behind(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    for name in (
        "acestep/handler.py",
        ".git/HEAD",
        "checkpoints/a.bin",
        "acestep/model.safetensors",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    copied = shield.copy_of(root, tmp_path / "scratch")
    assert [f.name for f in copied.rglob("*") if f.is_file()] == ["handler.py"]


ASKING = """
import platform, sys
from sys import platform as said
def ask():
    import sys as within
    return [sys.platform, said, within.platform, platform.system(), platform.machine(),
            platform.mac_ver()[0], platform.uname().system, sys.version_info[:2]]
"""


def test_only_the_packages_asked_for_see_a_mac(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("on_a_mac", "elsewhere"):
        (tmp_path / f"{name}.py").write_text(ASKING)
    monkeypatch.syspath_prepend(tmp_path)
    here = [sys.platform, platform.system(), platform.machine()]
    with as_mac(["on_a_mac"], "14.6"):
        import elsewhere
        import on_a_mac

        mac, plain = on_a_mac.ask(), elsewhere.ask()
        assert [sys.platform, platform.system(), platform.machine()] == here
    version = sys.version_info[:2]
    assert mac == ["darwin"] * 3 + ["Darwin", "arm64", "14.6", "Darwin", version]
    assert plain[:5] == [sys.platform] * 3 + here[1:]


def test_what_to_install_is_one_line() -> None:
    told = pip_line(["loguru", "vector_quantize_pytorch", "yaml"])
    assert told == "python -m pip install PyYAML loguru vector-quantize-pytorch"


def test_a_commit_is_written_without_touching_its_repository(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    (root / "a b.txt").write_text("old\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    (root / "a b.txt").write_text("new\n")
    assert export(root, "HEAD", tmp_path / "out") == []
    assert (tmp_path / "out" / "a b.txt").read_text() == "old\n"
    with pytest.raises(CheckoutError, match="nowhere"):
        export(root, "nowhere", tmp_path / "other")

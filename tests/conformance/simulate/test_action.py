"""The composite action: its script runs the command, adds the page and exits as the program did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ACTION = Path(__file__).parents[3] / ".github" / "actions" / "simulate" / "action.yml"


def test_the_actions_script(tmp_path: Path) -> None:
    action: dict[str, Any] = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
    (step,) = action["runs"]["steps"]
    named = {"command", "macos", "torch", "memory-gb", "junit-file", "python"}
    assert set(action["inputs"]) == named
    # No input stands in the script itself, where it would be run.
    assert "${{" not in step["run"]
    summary, junit = tmp_path / "summary.md", tmp_path / "out.xml"
    summary.write_text("before\n")
    script = tmp_path / "ends.py"
    script.write_text("raise SystemExit(3)")
    done = subprocess.run(
        ["bash", "-c", step["run"]],
        env={
            **os.environ,
            "SIM_COMMAND": f"python {script}",
            "SIM_MACOS": "14.5",
            "SIM_TORCH": "2.11",
            "SIM_MEMORY": "8",
            "SIM_JUNIT": str(junit),
            "SIM_PYTHON": sys.executable,
            "SIM_HOME": str(ACTION.parents[3]),
            "RUNNER_TEMP": str(tmp_path),
            "GITHUB_STEP_SUMMARY": str(summary),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    page = summary.read_text()
    assert page.startswith("before\n## mps-sim: no Mac was at work\n\n**THE RUN FAILED with exit")
    assert "macOS 14.5" in page
    assert " as 2.11)" in page
    assert 'failures="1"' in junit.read_text()

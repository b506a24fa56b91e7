"""Makes `pytest conformance` work from a checkout, where no entry point announces the plugin."""

from __future__ import annotations

pytest_plugins = ["conformance.plugin"]

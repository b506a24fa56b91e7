"""Makes `pytest conformance` work from a checkout, where no entry point announces the plugin."""

from __future__ import annotations

import sys

# Where the plugin is loaded already, pytest may meet this file too late to load plugins from it.
if "conformance.plugin" not in sys.modules:
    pytest_plugins = ["conformance.plugin"]

"""Settings of a run: the command line over ``[tool.conformance.scan]`` in pyproject.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conformance.scan.errors import ConfigError
from conformance.scan.findings import Severity
from conformance.scan.judging.rule import Rule
from conformance.scan.judging.rules import BY_CODE, RULES
from conformance.scan.reading.ignorefile import Patterns

FORMATS = ("concise", "full", "json", "sarif", "github", "junit")


@dataclass(frozen=True)
class Config:
    """What to scan, with which rules, and what to leave out. ``root`` anchors patterns.

    ``torch`` is the oldest PyTorch that fixes may count on, None if nothing says so.
    """

    root: Path
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    severity: Severity = Severity.WARNING
    per_file_ignores: tuple[tuple[str, tuple[str, ...]], ...] = ()
    jobs: int = 0
    baseline: str | None = None
    cache: bool = True
    cache_dir: str = ".conformance_cache"
    output_format: str = "concise"
    torch_version: str | None = None
    torch: tuple[int, int] | None = None
    per_file: tuple[tuple[Patterns, tuple[str, ...]], ...] = field(default=(), compare=False)

    def rules(self) -> tuple[Rule, ...]:
        """The rules that run: selected (all, if none is) and not ignored."""
        chosen = [rule for rule in RULES if not self.select or _matches(rule.code, self.select)]
        return tuple(rule for rule in chosen if not _matches(rule.code, self.ignore))

    def keeps(self, logical: str, code: str) -> bool:
        """Whether per-file ignores and the selection let a finding of this code through."""
        if _matches(code, self.ignore):
            return False
        return not any(
            _matches(code, codes) and patterns.match(logical, False)
            for patterns, codes in self.per_file
        )

    def checked(self) -> Config:
        """The same settings with codes and patterns verified; raises ConfigError."""
        codes = [*self.select, *self.ignore]
        for _, more in self.per_file_ignores:
            codes += more
        for code in codes:
            known = any(rule.code.startswith(code) for rule in RULES) or code.startswith("DEV00")
            if not code or not known:
                listed = ", ".join(BY_CODE)
                raise ConfigError(f"unknown rule {code!r}: expected a code or its start ({listed})")
        if not self.rules():
            raise ConfigError(
                f"no rule is left: select {', '.join(self.select) or 'all'}, "
                f"ignore {', '.join(self.ignore)}"
            )
        if self.jobs < 0:
            raise ConfigError(f"--jobs must be 0 (all cores) or more, not {self.jobs}")
        if self.output_format not in FORMATS:
            raise ConfigError(
                f"unknown output format {self.output_format!r}: expected {', '.join(FORMATS)}"
            )
        compiled = tuple((Patterns([pattern]), codes) for pattern, codes in self.per_file_ignores)
        return replace(self, per_file=compiled)


def _matches(code: str, prefixes: tuple[str, ...]) -> bool:
    return any(code.startswith(prefix) for prefix in prefixes)


def find_root(start: Path) -> Path:
    """Nearest ancestor that holds pyproject.toml or a git repository, else ``start`` itself."""
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file() or (folder / ".git").exists():
            return folder
    return start


def load_config(file: Path | None, root: Path) -> Config:
    """Settings from ``[tool.conformance.scan]`` of a file; defaults when there is none.

    Raises ConfigError with the file and the key at fault.
    """
    path = file or root / "pyproject.toml"
    if file is None and not path.is_file():
        return Config(root)
    try:
        with path.open("rb") as stream:
            content: Any = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for key in ("tool", "conformance", "scan"):
        content = content.get(key, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: [{key}] is not a table")
    return _from_table(content, path, root)


_LISTS = ("select", "ignore", "exclude")


def _from_table(table: dict[str, Any], path: Path, root: Path) -> Config:
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        where = f"{path}: [tool.conformance.scan] {key}"
        if name in _LISTS:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ConfigError(f"{where} must be a list of strings")
            values[name] = tuple(value)
        elif name == "per_file_ignores":
            if not isinstance(value, dict) or not all(isinstance(v, list) for v in value.values()):
                raise ConfigError(f"{where} must map patterns to lists of codes")
            values[name] = tuple((k, tuple(str(c) for c in v)) for k, v in value.items())
        elif name == "severity":
            try:
                values[name] = Severity.parse(str(value))
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from None
        elif name in ("baseline", "cache_dir", "output_format", "torch_version"):
            if not isinstance(value, str):
                raise ConfigError(f"{where} must be a string")
            values[name] = value
        elif (name == "jobs" and isinstance(value, int) and not isinstance(value, bool)) or (
            name == "cache" and isinstance(value, bool)
        ):
            values[name] = value
        else:
            raise ConfigError(f"{where} is not a setting, or has the wrong type")
    return Config(root, **values)

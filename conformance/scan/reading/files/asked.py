"""Requirement files, ``setup.cfg``, ``pyproject.toml`` and conda's files as lists of requests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from conformance.scan.reading.files.lines import logical_lines
from conformance.scan.reading.files.pieces import Asked, Setting

_COMMENT = re.compile(r"(?:^|\s)#.*\Z")
_SECTION = re.compile(r"\[([^\]]+)\]\s*\Z")
_SELECTOR = re.compile(
    r"#\s*\[[^\]]*\b(?:linux|win|not osx|unix and not osx)\b[^\]]*\]|sel\((?!osx)"
)


def in_requirements(text: str) -> Iterator[Asked]:
    """Lines of a requirements file without their comments, options among them."""
    for line, start in logical_lines(text):
        inner = _COMMENT.sub("", line)
        plain = inner.strip()
        if plain:
            at = start + line.index(plain[0])
            yield Asked(plain, at, at + len(plain))


def in_setup_cfg(text: str) -> Iterator[Asked]:
    """``install_requires`` and the extras of a ``setup.cfg``."""
    section, key = "", ""
    for line, start in logical_lines(text):
        plain = _COMMENT.sub("", line).strip()
        header = _SECTION.match(plain)
        if header is not None:
            section, key = header[1], ""
            continue
        if line[:1].strip() and "=" in plain:
            key, _, rest = plain.partition("=")
            key, plain = key.strip(), rest.strip()
        extra = key if section == "options.extras_require" else ""
        if plain and (extra or (section == "options" and key == "install_requires")):
            for part in re.split(r"\s*\n\s*", plain):
                at = start + line.index(part)
                yield Asked(part, at, at + len(part), extra)


def in_pyproject(settings: Iterable[Setting], text: str) -> Iterator[Asked]:
    """What a ``pyproject.toml`` (or ``Pipfile``, ``pixi.toml``) asks for, by whichever tool."""
    tables: dict[tuple[str, ...], dict[str, Setting]] = {}
    for setting in settings:
        asked = _declared(setting)
        if asked is not None:
            yield asked
        keys = setting.keys
        for width, installer in ((_poetry(keys), "pip"), (_pixi(keys), "conda")):
            if width:
                inner = "".join(keys[width + 1 : width + 2])
                tables.setdefault((*keys[: width + 1], installer), {})[inner] = setting
    for (*path, installer), values in tables.items():
        yield _from_table(tuple(path), installer, values)


def _declared(setting: Setting) -> Asked | None:
    """An item of the standard's own lists, or of PEP 735's groups."""
    match setting.keys:
        case ("project", "dependencies", _) | ("build-system", "requires", _):
            group = ""
        case ("project", "optional-dependencies", group, _) | ("dependency-groups", group, _):
            pass
        case _:
            return None
    return Asked(setting.value, setting.start, setting.end, group)


def _poetry(keys: tuple[str, ...]) -> int:
    """How many keys lead to Poetry's or Pipenv's table of packages; 0 if none do."""
    if keys[:3] == ("tool", "poetry", "dependencies"):
        return 3
    if keys[:3] == ("tool", "poetry", "group") and keys[4:5] == ("dependencies",):
        return 5
    return 1 if keys[:1] in (("packages",), ("dev-packages",)) else 0


def _pixi(keys: tuple[str, ...]) -> int:
    inner = keys[2:] if keys[:2] == ("tool", "pixi") else keys
    return len(keys) - len(inner) + 1 if inner[:1] == ("dependencies",) else 0


def _from_table(path: tuple[str, ...], installer: str, values: dict[str, Setting]) -> Asked:
    """A package that stands as a key, with what its table says of platforms and options."""
    first = next(iter(values.values()))
    group = path[3] if path[:3] == ("tool", "poetry", "group") else ""
    elsewhere = False
    for name in ("markers", "platform", "sys_platform"):
        value = values[name].value if name in values else "darwin"
        elsewhere = elsewhere or ("darwin" not in value or "!=" in value)
    optional = "optional" in values and values["optional"].value == "true"
    group = group or (path[-1] if optional else "")
    version = values.get("version", first).value if "" in values or "version" in values else ""
    url = values["url"].value if "url" in values else ""
    text = f"{path[-1]} @ {url}" if url else path[-1]
    if not url and (installer == "conda" or "+cu" in version):
        text += "==" + version.lstrip("=^~ ")  # pip does not know Poetry's carets
    return Asked(text, first.start, first.end, group, installer, elsewhere)


def in_conda(settings: Iterable[Setting], text: str) -> Iterator[Asked]:
    """What a conda environment asks for, pip's part included; selectors for others are kept."""
    for setting in settings:
        match setting.keys:
            case ("dependencies", _):
                installer = "conda"
            case ("dependencies", _, "pip", _):
                installer = "pip"
            case _:
                continue
        end = text.find("\n", setting.end)
        rest = text[setting.end : end if end >= 0 else len(text)]
        elsewhere = _SELECTOR.search(rest) is not None
        yield Asked(setting.value, setting.start, setting.end, "", installer, elsewhere)


def in_setup_py(text: str) -> Iterator[Asked]:
    """Texts in the lists that a ``setup.py`` hands to ``setup()``, or builds for it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return  # said elsewhere
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    for node in ast.walk(tree):
        pairs: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Call):
            pairs = [(k.arg, k.value) for k in node.keywords if k.arg]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            pairs = [(node.targets[0].id, node.value)]
        for name, value in pairs:
            if name.lower() in ("install_requires", "requirements", "requires", "dependencies"):
                yield from _texts(value, "", starts, text)
            elif name.lower() in ("extras_require", "extras") and isinstance(value, ast.Dict):
                for key, inner in zip(value.keys, value.values, strict=True):
                    extra = key.value if isinstance(key, ast.Constant) else "extra"
                    yield from _texts(inner, str(extra), starts, text)


def _texts(value: ast.expr, group: str, starts: list[int], text: str) -> Iterator[Asked]:
    if not isinstance(value, ast.List | ast.Tuple | ast.Set):
        return
    for item in value.elts:
        if isinstance(item, ast.Constant) and isinstance(item.value, str):
            line = text[starts[item.lineno - 1] :].encode()
            column = len(line[: item.col_offset].decode("utf-8", "ignore"))
            start = starts[item.lineno - 1] + column
            end = start + (item.end_col_offset or 0) - item.col_offset
            yield Asked(item.value, start, end, group)

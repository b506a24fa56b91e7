"""Files that are not Python: which are opened, and that every value is found in its place."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.scan.config import Config
from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES
from conformance.scan.reading.discover import discover
from conformance.scan.reading.files import json_, shell, toml_, yaml_
from conformance.scan.reading.files.pieces import FileError, Setting
from conformance.scan.reading.kinds import LARGEST, MOST_JSON, kind_of

REPOSITORY = Path(__file__).parents[4]
TOML = """
title = "a # b"  # a comment
point = 1.5
when = 2024-01-02T03:04:05Z
a.b."c.d" = 'x'
[one.two]
list = [ "x", 'y',  # why
  ["z"], {k = "v", m.n = 2} ]
text = \"\"\"cuda
"quoted" more\"\"\"
[[three]]
k = true
[[three]]
k = false
"""
FOLDED = "run = \"\"\"\\\n  python -c \\\n  cuda\n\"\"\"\nraw = '''\ncuda\\x'''\n"
JSON = '{"a": {"b": [1, "c\\"uda", {"d": null}]}, "e": true, "f": [], "g": {}, "h": ["x", [2.5e3]]}'
YAML = "a:\n  b: [1, x, {c: y}]\n  d: &here {e: f}\n  g: *here\nh: |\n  two\n  lines\ni: 'q'\n"


def flat(value: Any, keys: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys that lead to every scalar."""
    if isinstance(value, dict):
        return [k for name, inner in value.items() for k in flat(inner, (*keys, str(name)))]
    if isinstance(value, list):
        return [k for n, inner in enumerate(value) for k in flat(inner, (*keys, f"[{n}]"))]
    return [keys]


def test_every_toml_value_is_found_under_its_keys_and_in_its_place() -> None:
    own = (REPOSITORY / name / "pyproject.toml" for name in ("", "conformance"))
    for text in (TOML, FOLDED, *(path.read_text() for path in own)):
        found = toml_.settings(text)
        assert sorted(s.keys for s in found) == sorted(flat(tomllib.loads(text)))
        for setting in found:
            written = text[setting.start : setting.end]
            parsed = tomllib.loads(f"x = {written}")["x"]
            assert str(parsed) == setting.value or not isinstance(parsed, str)


def test_every_json_and_yaml_value_is_found_under_its_keys_and_in_its_place() -> None:
    for setting in json_.settings(JSON):
        parsed = json.loads(JSON[setting.start : setting.end])
        assert parsed == setting.value or not isinstance(parsed, str)
    assert [s.keys for s in json_.settings(JSON)] == flat(json.loads(JSON))
    found = yaml_.settings(YAML)
    expected = [keys for keys in flat(yaml.safe_load(YAML)) if keys != ("a", "g", "e")]
    assert [s.keys for s in found] == expected  # what an alias stands for is read once
    assert {YAML[s.start : s.end] for s in found} >= {"1", "x", "y", "f", "'q'"}
    assert json_.settings('"alone"') == [Setting((), "alone", 0, 7)]


@pytest.mark.parametrize(
    ("reader", "text", "line"),
    [
        (yaml_, "a: [\nb: }", 2),
        (yaml_, "{% if x %}\ncuda: 1", 1),
        (toml_, "a = 1\nb = = 2", 2),
        (json_, '{\n"a": 1,\n}', 2),
        (json_, "[" * 100_000, 1),
        (json_, '{"a": ' + "9" * 5000 + "}", 1),
    ],
)
def test_what_does_not_parse_says_where(reader: Any, text: str, line: int) -> None:
    with pytest.raises(FileError) as caught:
        reader.settings(text)
    assert abs(caught.value.line - line) <= 1


def test_a_tree_of_aliases_is_walked_once() -> None:
    layers = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 30))
    assert len(yaml_.settings(f"l0: &l0 [cuda]\n{layers}")) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("conf/a.yaml", "yaml"), ("a.yml", "yaml"), ("pyproject.toml", "toml"), ("Pipfile", "toml"),
        ("run.json", "json"), ("requirements.txt", "requirements"), ("dev-requirements.txt", "requirements"),
        ("requirements/base.txt", "requirements"), ("requirements_gpu.in", "requirements"),
        ("setup.cfg", "cfg"), ("tox.cfg", ""), ("run.sh", "shell"), ("Makefile", "make"), ("x.mk", "make"),
        ("Dockerfile", "docker"), ("Dockerfile.gpu", "docker"), ("base.dockerfile", "docker"),
        ("notes.txt", ""), ("LICENSE", ""), ("a.py", "python"), ("a.ipynb", "notebook"),
        ("package-lock.json", ""), ("poetry.lock", ""), ("conda-lock.yml", ""), ("pnpm-lock.yaml", ""),
        ("requirements-lock.txt", ""), ("requirements.lock.txt", ""), ("tokenizer.json", ""),
        ("tokenizer_config.json", ""), ("vocab.json", ""), ("model.safetensors.index.json", ""),
        ("blocks.yaml", "yaml"), ("clock.yaml", "yaml"),
    ],
)  # fmt: skip
def test_kinds_of_files(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_data_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"device": "cuda"}')
    (tmp_path / "big.json").write_text('"' + "x" * LARGEST["json"] + '"')
    many = tmp_path / "samples"
    many.mkdir()
    for number in range(MOST_JSON + 1):
        (many / f"{number}.json").touch()
    (many / "conf.yaml").touch()
    found = {target.logical for target in discover([str(tmp_path)], Config(tmp_path))}
    assert found == {"run.json", "samples/conf.yaml"}


def test_commands_stand_in_their_blocks_and_texts_are_none() -> None:
    script = (
        "#!/bin/bash\nA=1 B='x y' python a.py --n 1 \\\n  --m 2  # not this\n"
        "case $1 in\n  gpu) python b.py ;;\n  *) python c.py ;;\nesac\n"
        "start() {\n  python d.py && python e.py\n}\n"
        "cat <<EOF\npython f.py\nEOF\necho 'it is\n"
    )
    made = {c.words: c for c in shell.commands(script)}
    first = made["python", "a.py", "--n", "1", "--m", "2"]
    assert first.assigned == (("A", "1"), ("B", "x y"))
    assert script[first.start :].startswith("A=1")
    assert "gpu" in made["python", "b.py"].around[0]
    assert "start" in made["python", "d.py"].around
    assert ("python", "e.py") in made
    assert ("python", "f.py") not in made
    recipe = "ifdef CUDA\nD ?= cuda\nendif\nrun: all\n\t@python a.py $$X\n"
    found = list(shell.make_commands(recipe))
    assert (found[0].assigned, found[0].around) == ((("D", "cuda"),), ("ifdef CUDA",))
    assert (found[1].words, found[1].around) == (("python", "a.py", "$X"), ("run",))


SEEDS = [
    ("a.yaml", YAML + "device: cuda\noptimizer: adamw8bit\n"),
    ("a.toml", TOML + "device = 'cuda'\n"),
    ("pyproject.toml", "[tool.poetry.dependencies]\nxformers = {version='1', platform='linux'}\n[[tool.uv.index]]\nurl='https://x/whl/cu124'\n"),
    ("a.json", '{"device": "cuda:0", "x": [{"dtype": "fp16", "device": "cpu"}]}'),
    ("requirements.txt", "flash-attn>=2 \\\n  --hash=sha256:0 # x\n-i https://x/whl/cu121\nhttps://x/a-1+cu1-py3.whl\n"),
    ("setup.cfg", "[options]\ninstall_requires = xformers\n  triton; python_version<'3'\n"),
    ("setup.py", "import setuptools\nsetup(install_requires=['é', 'xformers'])\n"),
    ("environment.yml", "name: x\nchannels: [a]\ndependencies:\n- cudatoolkit=11 # [linux]\n- pip: [triton]\n"),
    ("a.sh", "if x; then\n  CUDA_VISIBLE_DEVICES=$1 python a --device cuda\nfi\npip install xformers\n"),
    ("Makefile", "D := cuda\nrun:\n\tpip install -i https://x/whl/cu1\n"),
    ("Dockerfile", "FROM nvidia/cuda:12\nCMD [\"--device\", \"cuda\"]\n"),
]  # fmt: skip


def test_nothing_made_of_such_files_breaks_the_scan() -> None:
    rng = random.Random(20)
    for _ in range(120):
        for name, text in SEEDS:
            data = bytearray(text.encode())
            for _ in range(rng.randint(0, 6)):
                at = rng.randrange(len(data) + 1)
                piece = rng.choice(
                    [
                        b"",
                        b"\n",
                        b"[",
                        b"]",
                        b"{",
                        b"}",
                        b":",
                        b"=",
                        b"'",
                        b'"',
                        b"\xff",
                        b"\\",
                        b"- ",
                        b"cuda",
                        b"\t",
                        b"&a ",
                        b"*a",
                        b"$",
                        bytes([rng.randrange(256)]),
                    ]
                )
                data[at : at + rng.randint(0, 3)] = piece
            for finding in analyse(name, bytes(data), RULES):
                assert 1 <= finding.line <= finding.end_line
                assert finding.column >= 1

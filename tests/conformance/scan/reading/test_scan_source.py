"""Any bytes in, an answer out: encodings, damage, depth and size."""

from __future__ import annotations

import codecs
import gc

import pytest

from conformance.scan.judging.analysis import UNREADABLE, analyse
from conformance.scan.judging.rules import RULES
from conformance.scan.reading import prefilter
from conformance.scan.reading.source import Source, SourceError, decode, split_lines

CALL = "import torch\ntorch.cuda.synchronize()\n"


def lines_of(data: bytes, code: str = "DEV102") -> list[int]:
    return [f.line for f in analyse("module.py", data, RULES) if f.code == code]


@pytest.mark.parametrize(
    "data",
    [
        CALL.encode(),
        codecs.BOM_UTF8 + CALL.encode(),
        CALL.encode("utf-16"),
        CALL.replace("\n", "\r\n").encode(),
        CALL.replace("\n", "\r").encode(),
        CALL.rstrip().encode(),
        b"\x0c" + CALL.encode(),
    ],
    ids=["utf-8", "bom", "utf-16", "crlf", "cr", "no last newline", "form feed"],
)
def test_text_in_any_dress_is_read(data: bytes) -> None:
    assert lines_of(data) == [2]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1251", "shift_jis", "gbk"])
def test_declared_encoding_is_used_and_columns_count_characters(encoding: str) -> None:
    word = {"latin-1": "naïve", "cp1251": "привет", "shift_jis": "変数", "gbk": "变量"}[encoding]
    code = f"# -*- coding: {encoding} -*-\nimport torch\n{word} = 1; torch.cuda.synchronize()\n"
    (finding,) = analyse("module.py", code.encode(encoding), RULES)
    assert (finding.line, finding.column) == (3, len(word) + 7)


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"print 'cuda'\n", 1, "syntax error"),
        (b"x = 'cuda'\nexec 'y' in z\n", 2, "syntax error"),
        (b"def f(:\n  'cuda'\n", 1, "syntax error"),
        (b"x = 'cuda'\n\0\n", 2, "NUL"),
        (b"x = 'cuda'\n\xff\xfe\n", 2, "not valid utf-8"),
        (b"# coding: no-such-thing\ncuda\n", 1, "unknown encoding"),
        (b"# coding: rot13\ncuda\n", 1, "not valid rot"),
        (b"if cuda:\n\tx\n        y\n", 3, "syntax error"),
    ],
)
def test_what_cannot_be_read_is_reported_where_it_is(data: bytes, line: int, words: str) -> None:
    (finding,) = analyse("module.py", data, RULES)
    assert finding.code == UNREADABLE
    assert finding.line == line
    assert words in finding.message


def test_python_2_without_a_word_of_devices_is_not_our_business() -> None:
    assert analyse("module.py", b"print 'hello'\n", RULES) == []


@pytest.mark.parametrize(
    "code",
    [
        "x = " + "(" * 5000 + "'cuda'" + ")" * 5000,
        "x = " + "-" * 5000 + "torch.cuda.current_device()",
        "x = " + "[" * 150 + "'cuda'" + "]" * 150,
        "\n".join(" " * depth + "if x:" for depth in range(120)) + "\n" + " " * 120 + "'cuda'",
        "x = " + " + ".join(["torch.cuda.current_device()"] * 2500),
        # These hung: a walk for every part of the sum, and a round for every helper of the chain.
        "x = ['cuda', 'cpu'] + " + " + ".join(f"a{i}" for i in range(5000)),
        "import torch\ndef _f0():\n    torch.cuda.synchronize()\n"
        + "".join(f"def _f{i}():\n    _f{i - 1}()\n" for i in range(1, 3000)),
        "x = " + "f(" * 180 + "'cuda'" + ")" * 180,
        "if a == 'cuda':\n    pass\n" + "elif a == 'cuda':\n    pass\n" * 2000,
        "x" + ".cuda()" * 3000,
        "x = " + "a if b else " * 3000 + "'cuda'",
        "x = " + "not " * 4000 + "cuda",
        "device = " + "device or " * 4000 + "'cuda'",
    ],
    ids=lambda code: code[:12],
)
def test_deep_nesting_gives_an_answer(code: str) -> None:
    findings = analyse("module.py", b"import torch\n" + code.encode(), RULES)
    assert all(f.code == UNREADABLE or f.code.startswith("DEV1") for f in findings)


def test_ten_megabytes_on_one_line() -> None:
    line = b"x = '" + b"a" * 10_000_000 + b"'; torch.cuda.synchronize()\n"
    assert lines_of(b"import torch\n" + line) == [2]


def test_names_in_any_script() -> None:
    code = "import torch as 火\nустройство = '\N{SNOWMAN}'; 火.cuda.synchronize()\n"
    (finding,) = analyse("module.py", code.encode(), RULES)
    assert finding.column == len("устройство = '☃'; ") + 1


def test_nothing_that_is_read_is_run(tmp_path: object) -> None:
    code = f"import torch\nopen({str(tmp_path) + '/made'!r}, 'w')\ntorch.cuda.synchronize()\n"
    assert lines_of(code.encode()) == [3]
    assert not list(tmp_path.iterdir())  # type: ignore[attr-defined]


def test_lines_split_where_python_splits_them() -> None:
    assert split_lines("a\x0bb\u2028c\rd\r\ne\n") == ["a\x0bb\u2028c", "d", "e", ""]
    source = Source("x", "é = 1\r\nx\ry\n")
    assert source.starts == [0, 7, 9, 11]
    assert source.offset(1, 3) == 2
    assert source.line_of(7) == 2


def test_decode_names_the_line() -> None:
    with pytest.raises(SourceError) as caught:
        decode(b"a\nb\n\xff")
    assert caught.value.line == 3


def test_thinning_keeps_lines_and_every_hot_definition() -> None:
    quiet = "def f{0}(a):\n    '''text\ndef inside(): pass\n'''\n" + "    a += 1\n" * 20
    long = "def long(a):\n" + "    a += 1\n" * 40
    code = "import torch\n" + quiet.format(1) + long + "\nclass C:\n"
    code += "".join("    " + line + "\n" for line in quiet.format(2).splitlines())
    code += "    def hot(self):\n        torch.cuda.synchronize()\n" + quiet.format(3)
    data = code.encode()
    offsets = prefilter.hot_offsets(data, prefilter.hot_words(data))
    thin = prefilter.thin(data, offsets)
    assert len(thin) < len(data)
    assert thin.count(b"\n") == data.count(b"\n")
    assert lines_of(data) == [code[: code.index("torch.cuda.s")].count("\n") + 1]


def test_thinning_that_breaks_a_file_is_undone() -> None:
    odd = 'x = """\n' + "def f():\n    pass\n" * 20 + '"""\n' + CALL
    assert lines_of(odd.encode()) == [44]


def test_words_are_found_and_their_look_alikes_are_not() -> None:
    data = b"timestamps = np.float64(1)\n# cuda\n>>> cuda\nx.mps\n"
    words = prefilter.hot_words(data)
    assert prefilter.hot_offsets(data, words) == [data.index(b".mps") + 1]
    assert prefilter.hot_words(b"import json\njson.load(f)\n") == []


@pytest.mark.parametrize(
    "line",
    [
        b"ok = torch.backends.mps.is_available()\n",
        b"from ...modeling_flash_attention_utils import run\n",
        b"class Model:\n    _supports_flash_attn = True\n",
    ],
)
def test_words_that_only_explain_count_beside_others(line: bytes) -> None:
    def count(data: bytes) -> int:
        return len(prefilter.hot_offsets(data, prefilter.hot_words(data)))

    assert count(line) == 0
    assert count(line + b"import flash_attn\n") == 2
    assert count(line + b"x.to('cuda')\n") == 2


def test_nothing_of_a_file_waits_for_the_collector() -> None:
    code = "import torch\nclass C:\n    def f(self):\n        torch.cuda.synchronize()\n"
    gc.collect()
    gc.disable()
    try:
        assert analyse("a.py", code.encode(), RULES)
        left = gc.collect()
    finally:
        gc.enable()
    assert left == 0


@pytest.mark.parametrize(
    ("code", "name", "used"),
    [
        ("from m import f\n", "f", False),
        ("from m import f; f()\n", "f", True),
        ("from m import f\nf()\n", "f", True),
        ("from m import f\nself.f(f1, _f)\n", "f", False),
        ("# f(x)\n", "f", False),
        ("import m\rf()\r", "f", True),  # old Macs' line ends
        ("(yield\nfrom f())\n", "f", True),
        ("\n\ndef f(x): ...\n", "f", False),
        ("@register\ndef f(x): ...\n", "f", True),  # the decorator may hand it on
        ("a.m.f()\n", "m.f", False),
        ("m.g(f)\n", "m.f", False),
        ("m.f()\n", "m.f", True),
        ("(m  # why\n  .f())\n", "m.f", True),
        ("m. \\\n f()\n", "m.f", True),
        ("f(x)\n", ".f", False),
        ("x.f()\n", ".f", True),
        ("g(x)\\\n  .f()\n", ".f", True),
    ],
)
def test_a_second_look_is_taken_only_where_a_name_is_used(code: str, name: str, used: bool) -> None:
    assert prefilter.mentions(code.encode(), [name]) is used

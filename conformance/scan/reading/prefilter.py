"""Cheap tests on bytes: which files, functions and lines can hold a finding at all."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from itertools import pairwise

#: Words without which no rule can fire. A file that holds none of them is never parsed.
WORDS = (
    b"cuda",
    b"mps",
    b"xpu",
    b".npu",
    b'"npu',
    b".hpu",
    b".mlu",
    b".musa",
    b"float64",
    b"complex128",
    b"double(",
    b"torch.double",
    b"torch.load",
    b"torch.jit.load",
    b"torch.autocast",
    b"GradScaler",
    b"pin_memory",
    b"non_blocking",
    b"vllm",
    b"flash_att",
    b"nccl",
    b".half()",
    b"=torch.float16",
    b", torch.float16)",
    b"=torch.half",
    b"load_in_",
    b"CUDAExecution",
    b"FLASH_ATTENTION",
    b"'gpu'",
    b'"gpu"',
)
# One search for each keyword: its literal start makes `re` as quick as a substring search.
_PACKAGES = (
    rb"(?:triton|cu\w*|pynvml|transformer_engine|deep_gemm|deep_ep|bitsandbytes|xformers|apex"
    rb"|tensorrt\w*|flashinfer|vllm|nvmath|pycuda|mamba_ssm|causal_conv1d|sageattention|rmm"
    rb"|torch_tensorrt|spconv|nvdiffrast|tinycudann|nvidia_dali|tilelang|exllama_kernels)\b"
)
_IMPORTS = (re.compile(rb"import " + _PACKAGES), re.compile(rb"from " + _PACKAGES))
#: Words that count only at the start of a word (``stamps`` is no MPS).
_BOUNDED = frozenset({b"mps"})
#: Words that fire no rule in these places, and matter only beside others: the test for MPS, and
#: flash attention inside a longer name (the engine stands in quotes, the package alone).
_EXPLAINING = {
    b"mps": re.compile(rb"(?<=\bbackends\.)mps"),
    b"flash_att": re.compile(rb"(?<=[A-Za-z0-9_])flash_att"),
}
#: Names of double precision: they matter only where something is placed, cast or named.
_PRECISION = frozenset({b"float64", b"complex128", b"torch.double"})
_NEAR = 240
#: What makes NumPy's double precision where no dtype is given.
_DOUBLES = re.compile(
    rb"np\.(?:linspace|logspace|zeros|ones|eye|random\.(?:randn?|normal|uniform))\("
    rb"|np\.(?:arange|array|full)\([^)\n]*\d\."
)
#: Bytes below which a definition is sooner parsed than blanked.
_WORTH = 60
_NUMPY = (b"np.", b"numpy.")
_DEFINITION = rb"(?:@|(?:async[ \t]+)?def[ \t]|class[ \t])"
# Both begin with a literal, which `re` finds much faster than a line's start.
_TOP = re.compile(rb"\n(?=[^\s#)\]}])")
_METHOD = re.compile(rb"\n(?:    |\t)(?=" + _DEFINITION + rb")")
_IS_DEFINITION = re.compile(rb"[ \t]*" + _DEFINITION)
_IS_DECORATOR = re.compile(rb"[ \t]*@")
_IS_CLASS = re.compile(rb"[ \t]*class[ \t]")

#: The name of a definition, behind its decorators, and what runs though nothing calls its name.
_NAMED = re.compile(
    rb"(?:@[^\n]*\n(?:[ \t)][^\n]*\n)*)*(?:(?:async[ \t]+)?def|class)[ \t]+([^\W\d]\w*)"
)
_RUNS = re.compile(rb"\bautouse\b|\bglobal\b|(?:def|class)[ \t]+(?:[sS]et_?[uU]p|pytest_)")
_WORD = re.compile(rb"[^\W\d]\w*")
#: The beginning of a line that uses no name: a comment, an import, with nothing behind it.
_IMPORTED = re.compile(rb"#[^\r]*\Z|(?:import |from [^;\r]* import\b)[^;\r]*\Z")
#: What may stand between the names of a chain and its dots.
_GAP = rb"(?:\s|\\|#[^\n]*\n)*"
_DOT = _GAP + rb"\." + _GAP


def hot_words(data: bytes) -> list[bytes]:
    """The words in a file that a rule could fire on; none means that it need not be parsed."""
    words = [word for word in WORDS if word in data]
    for pattern in _IMPORTS:
        words += {match[0] for match in pattern.finditer(data)}
    if b"accelerator=" in data:  # one search for both kinds of quotes
        words += [word for word in (b'accelerator="gpu', b"accelerator='gpu") if word in data]
    # `torch.load` under another name: the word alone would match every loader there is.
    if b"load(" in data and (b"import torch as " in data or b"from torch import" in data):
        words.append(b"load(")
    moved = [word for word in (b"from_numpy(", b"tensor(np.") if word in data]
    if moved and _DOUBLES.search(data) is not None:
        words += moved
    return words


def find_all(data: bytes, word: bytes) -> list[int]:
    """Byte offsets of every occurrence of a word, without overlaps."""
    found: list[int] = []
    if not word:
        return found  # it is found everywhere, for ever
    at = data.find(word)
    while at >= 0:
        found.append(at)
        at = data.find(word, at + len(word))
    return found


def occurrences(data: bytes, names: set[str]) -> list[int]:
    """Byte offsets of identifiers where they stand as whole words."""
    found: list[int] = []
    for name in names - {""}:
        word = name.encode("utf-8", "surrogatepass")
        for at in find_all(data, word):
            before, after = data[at - 1 : at], data[at + len(word) : at + len(word) + 1]
            if not (before.isalnum() or before == b"_" or after.isalnum() or after == b"_"):
                found.append(at)
    return found


def mentions(data: bytes, names: Iterable[str]) -> bool:
    """Whether one of some names, as they are spelled, may be used beyond its import.

    A name with a dot before it is a method's, whatever that is called on.
    """
    return any(_is_used(data, name.encode("utf-8", "surrogatepass")) for name in names)


def _is_used(data: bytes, name: bytes) -> bool:
    *base, last = name.split(b".")
    if last not in data:
        return False
    chain = _DOT.join(map(re.escape, [*base, last]))
    start = b"" if base[:1] == [b""] else rb"(?<![\w.])"
    for match in re.finditer(start + chain.removeprefix(_GAP) + rb"(?!\w)", data):
        at = data.rfind(b"\n", 0, match.start()) + 1
        line = data[at : match.start()].lstrip()
        imported = _IMPORTED.match(line) is not None
        defined = line in (b"def ", b"async def ", b"class ") and data[at - 2 : at] == b"\n\n"
        if not imported and not defined:
            return True
    return False


def hot_offsets(data: bytes, words: list[bytes]) -> list[int]:
    """Byte offsets of those words, sorted, without the look-alikes; none if no rule can fire."""
    found: list[int] = []
    fires = False
    for word in words:
        explaining = _EXPLAINING.get(word)
        bounded = word in _BOUNDED
        precision = word in _PRECISION
        for at in find_all(data, word):
            if bounded and data[at - 1 : at].isalpha():
                continue
            if precision and not _placed(data, at):
                continue
            start = data.rfind(b"\n", 0, at) + 1
            # A comment, or an example in a docstring, is not code.
            if not data[start : start + 200].lstrip().startswith((b"#", b">>>", b"...")):
                found.append(at)
                fires = fires or explaining is None or not explaining.match(data, at)
    found.sort()
    return found if fires else []


def binding_offsets(data: bytes) -> list[int]:
    """Byte offsets of what decides no finding alone but may explain one: tests for the CPU, the
    accelerator that was asked for, and where tensors were put when double precision is about."""
    found = find_all(data, b"cpu") + find_all(data, b"version.hip")
    found += find_all(data, b"current_accelerator")
    found += find_all(data, b"device_ids[") + find_all(data, b"gpu_ids[")
    if any(word in data for word in (b"double(", *_PRECISION)):
        found += find_all(data, b"device=") + find_all(data, b".to(")
    if b"from_numpy(" in data:
        found += [match.start() for match in _DOUBLES.finditer(data)]
    return found


def _placed(data: bytes, at: int) -> bool:
    """Whether a dtype is named where a device is, in a conversion, or given a name."""
    if data[max(0, at - 6) : at].endswith(_NUMPY):
        return False
    low, high = max(0, at - _NEAR), at + _NEAR
    return (
        data.find(b"device", low, high) >= 0
        or data.find(b".to(", low, at) >= 0
        or data.find(b".type(", low, at) >= 0
        or data.find(b"set_default", low, at) >= 0
        or data.find(b" = ", max(0, at - 30), at) >= 0
    )


def _holds(offsets: list[int], start: int, end: int) -> bool:
    first = bisect.bisect_left(offsets, start)
    return first < len(offsets) and offsets[first] < end


def _segments(data: bytes, pattern: re.Pattern[bytes], start: int, end: int) -> list[int]:
    """Starts of the segments in a stretch; a decorator opens the definition that it decorates."""
    starts: list[int] = []
    after_decorator = False
    for match in pattern.finditer(data, start, end):
        at = match.start() + 1
        decorator = _IS_DECORATOR.match(data, at) is not None
        if not (after_decorator and (decorator or _IS_DEFINITION.match(data, at))):
            starts.append(at)
        after_decorator = decorator
    return starts


def _blankable(data: bytes, start: int, end: int) -> bool:
    return (
        _IS_DEFINITION.match(data, start) is not None
        and data.count(b'"""', start, end) % 2 == 0
        and data.count(b"'''", start, end) % 2 == 0
    )


def _blank(data: bytes, start: int, end: int) -> bytes:
    """A stretch of whole lines as one ``pass`` that keeps its number of line ends."""
    indent = data[start : start + 4] if data[start : start + 1] == b" " else b""
    if data[start : start + 1] == b"\t":
        indent = b"\t"
    return indent + b"pass" + b"\n" * data.count(b"\n", start, end)


def _within(places: list[tuple[int, int]], starts: list[int], at: int) -> bool:
    index = bisect.bisect_right(starts, at) - 1
    return index >= 0 and at < places[index][1]


def around(data: bytes, offsets: list[int], spoken: list[int]) -> list[int]:
    """Those of some offsets that matter to what is spoken of at others, which are among them.

    Left out are those in functions and classes of the module that hold none of the latter and
    that nothing which is left speaks of. What no name leads to but what runs (fixtures for every
    test, ``setUpModule``, ``global``) stays.
    """
    waiting: dict[bytes, list[tuple[int, int]]] = {}
    kept: list[tuple[int, int]] = []
    for start, end in pairwise([0, *_segments(data, _TOP, 0, len(data)), len(data)]):
        if not _IS_DEFINITION.match(data, start) or _holds(spoken, start, end):
            kept.append((start, end))
        elif _holds(offsets, start, end):
            named = _NAMED.match(data, start, end)
            if named is None or _RUNS.search(data, start, end) or not _blankable(data, start, end):
                kept.append((start, end))
            else:
                waiting.setdefault(named[1], []).append((start, end))
    while kept and waiting:
        text = b"\n".join(data[start:end] for start, end in kept)
        kept = [place for word in {*_WORD.findall(text)} for place in waiting.pop(word, ())]
    dropped = sorted(place for places in waiting.values() for place in places)
    starts = [start for start, _ in dropped]
    return [at for at in offsets if not _within(dropped, starts, at)]


def thin(data: bytes, offsets: list[int]) -> bytes:
    """The source with every function and class that holds no hot offset blanked out.

    Line numbers stay. The result may fail to parse where definitions stand inside odd
    constructs; the caller then parses the whole source. Source with lone carriage returns is
    returned as it is.
    """
    if not offsets or (b"\r" in data and data.count(b"\r") != data.count(b"\r\n")):
        return data
    parts: list[bytes] = []
    done = 0
    tops = [0, *_segments(data, _TOP, 0, len(data)), len(data)]
    for start, end in pairwise(tops):
        if not _holds(offsets, start, end):
            if end - start > _WORTH and _blankable(data, start, end):
                parts += [data[done:start], _blank(data, start, end)]
                done = end
        elif _IS_CLASS.match(data, start) or _IS_DECORATOR.match(data, start):
            inner = [*_segments(data, _METHOD, start, end), end]
            for low, high in pairwise(inner):
                if (
                    high - low > _WORTH
                    and not _holds(offsets, low, high)
                    and _blankable(data, low, high)
                ):
                    parts += [data[done:low], _blank(data, low, high)]
                    done = high
    if not parts:
        return data
    parts.append(data[done:])
    return b"".join(parts)

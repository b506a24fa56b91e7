"""What is so of a whole function is worked out once, not for each of its lines."""

from __future__ import annotations

import ast
import time

import pytest

from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES
from conformance.scan.reading.nodes import parts_of

_RANKS = "import torch.distributed as dist\ndef f(x, rank):\n    dist.init_process_group('nccl')\n"
_LINES = {
    "rank": (_RANKS, "    a{} = x.cuda(rank)\n"),
    "collective": (_RANKS, "    a{0} = torch.zeros(1, device='cuda')\n    dist.reduce(a{0})\n"),
    "branch": ("def f(x):\n", "    if torch.cuda.is_available():\n        a{} = x.to('cuda')\n"),
    "file": ("def f(m):\n", "    m{0}.load_state_dict(torch.load('a{0}'))\n"),
    "seed": ("def f():\n", "    torch.cuda.manual_seed({})\n"),
    "count": ("def f():\n", "    a{} = torch.cuda.device_count()\n"),
}


@pytest.mark.parametrize("kind", _LINES)
def test_a_long_function_takes_no_longer_a_line(kind: str) -> None:
    head, line = _LINES[kind]

    def seconds(count: int) -> float:
        text = f"import torch\n{head}" + "".join(line.format(n) for n in range(count))
        started = time.process_time()
        assert len(analyse("train.py", text.encode(), RULES)) >= count
        return time.process_time() - started

    seconds(5)
    # Four times the lines took ten to twenty times as long, and 17 s for a thousand of them.
    assert min(seconds(240), seconds(240)) < 8 * min(seconds(60) for _ in range(3))


def test_parts_are_those_of_ast_walk() -> None:
    tree = ast.parse(
        "@a\ndef f(x: int = 1, *, y=None):\n    return [i for i in x if i][0] + f'{y}'"
    )
    assert [id(part) for part in parts_of(tree)] == [id(part) for part in ast.walk(tree)]

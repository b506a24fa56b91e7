"""DEV114: torch.load without map_location."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from conformance.scan.findings import Edit, Fix, Severity
from conformance.scan.judging.context import Context
from conformance.scan.judging.rule import Bad, Rule
from conformance.scan.knowing.facts import ANY
from conformance.scan.knowing.point import Point
from conformance.scan.knowing.signatures import spelled
from conformance.scan.reading.nodes import parts_of
from conformance.scan.reading.source import without_texts

_LOADS = frozenset({"torch.load", "torch.serialization.load", "torch.jit.load"})
_SAVED = re.compile(r"torch\.save\(\s*(\w+|\{)")
_TENSORS = re.compile(r"\btorch\.(?!save\b|load\b)|[Tt]ensor|\bnn\.|\.(?:to|cpu|cuda|detach)\(")
_HOST_STATE = re.compile(r"(?:^|[^a-z])rng|scheduler|scaler\.load_state_dict|scaler_state")
_SAMPLES = re.compile(r"Data(?:set|[Ll]oader|[Mm]odule)|Sampler|Collat")
_DATA = re.compile(
    r"(?:^|[^a-z])(?:data|dataset|mels?|spec(?:trogram)?s?|f0|audio|wavs?|feat(?:ure)?s?|stat(?:istic)?s"
    r"|labels?|targets|samples?|mnist|corpus|corpora|vocab(?:ulary)?)(?:[^a-z]|$)"
)
#: Files of a tokeniser, which has tables of texts and numbers.
_TOKENS = re.compile(r"tokeni[sz]|vocab")
_WEIGHTS = re.compile(r"state|ckpt|checkpoint|weight|model|net(?:[^a-z]|$)")
#: What saves the best model that there was so far.
_STOPPING = re.compile(r"(?:^|[._])early_?stop")
#: Names that are put into a text, in the dump of a file's name.
_NAMES = re.compile(r"Name\(id='\w+', ctx=Load\(\)\)")
_FORMATTED = re.compile(
    r"JoinedStr\(.*Constant\(value='|Constant\(value='[^']*\w[^']*'\), attr='format'"
)
_NUMBERS = re.compile(r"\s*['\"]\w+['\"]:[^,{}]*\.item\(\)\s*")


#: Brackets around an argument.
_BEHIND = re.compile(r"(?:\s*\))*")
#: So many steps behind a call are looked at.
_CHAIN = 4


def _call(context: Context, node: ast.Call) -> None:
    if context.dotted(node.func) not in _LOADS or len(node.args) != 1:
        return
    if any(keyword.arg in (None, "map_location") for keyword in node.keywords):
        return
    if isinstance(node.args[0], ast.Starred) or _is_placed(context, node.args[0]):
        return
    if _is_of_host(context, node) or _is_compared(context, node) or _is_round_trip(context, node):
        return
    if _holds_host_state(context):
        return
    if context.scope.enclosing("class") is not None and _holds_numbers(context):
        return
    context.report(
        RULE,
        node,
        f"{context.dotted(node.func)} without map_location restores tensors to the device they were saved from",
        # A test loads what it, or its code, wrote on this machine, and data were prepared there.
        severity=Severity.NOTE if context.in_tests or _is_data(context, node) else None,
        fix=_fix(context, node),
    )


def _is_of_host(context: Context, node: ast.Call) -> bool:
    """``torch.load(name)[0].numpy()``: only a tensor on the host has that."""
    chain = {id(node)}
    for _ in range(_CHAIN):
        for part in parts_of(context.statement):
            held = part.func if isinstance(part, ast.Call) else getattr(part, "value", None)
            if id(held) in chain or (isinstance(part, ast.Attribute) and id(part.value) in chain):
                chain.add(id(part))
    return any(
        isinstance(part, ast.Attribute) and part.attr == "numpy" and id(part.value) in chain
        for part in parts_of(context.statement)
    ) and not any(
        isinstance(part, ast.Attribute) and part.attr == "cpu" and id(part.value) in chain
        for part in parts_of(context.statement)
    )


def _fix(context: Context, node: ast.Call) -> Fix | None:
    """To the host where the tensors are copied on from there; else only where CUDA is not."""
    end = _end(context, node)
    if end is None:
        return None
    copied = any(
        isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr == "load_state_dict"
        and node in parts_of(part)
        for part in parts_of(context.statement)
    )
    if copied:
        return Fix((Edit(end, end, ', map_location="cpu"'),))
    torch = context.torch_name()
    if torch is None:
        return None
    text = f', map_location=None if {torch}.cuda.is_available() else "cpu"'
    return Fix((Edit(end, end, text),), safe=True)


def _end(context: Context, node: ast.Call) -> int | None:
    """Where another argument may be written: behind the first, and the brackets around it."""
    end, last = context.span(node.args[0])[1], context.span(node)[1] - 1
    behind = _BEHIND.match(context.source.text, end, last)
    return None if isinstance(node.args[0], ast.GeneratorExp) or not behind else behind.end()


def _is_placed(context: Context, file: ast.expr) -> bool:
    """Whether the code knows where the tensors are: it runs with one backend, or they are bytes
    of tensors that were copied to the host."""
    if any(name != ANY for name in context.facts.known):
        return True
    value = context.resolver.only_value(file, context.scope)
    return any(
        isinstance(part, ast.Attribute) and part.attr == "cpu"
        for part in parts_of(value[0] if value is not None else file)
    )


def _is_compared(context: Context, node: ast.Call) -> bool:
    """Whether the whole file is compared with something: tensors are not."""
    test = getattr(context.statement, "test", context.statement)
    return any(
        isinstance(part, ast.Compare) and node in (part.left, *part.comparators)
        for part in parts_of(test)
    )


def _is_round_trip(context: Context, node: ast.Call) -> bool:
    """Whether the same function, or the program itself, saved the file before: the device is
    still there."""
    file = node.args[0]
    if isinstance(file, ast.Name) and len(context.resolver.bounds(file, context.scope)[0]) > 1:
        return False  # another file by then
    owner = (context.scope.enclosing("function") or context.resolver.scopes.module).node
    line = context.once(_saved, owner).get(ast.dump(file))
    if line is None:
        line = context.once(_saved_in_loops, owner).get(_pattern(file))
    return (line is not None and line < node.lineno) or _is_best(context, node, owner)


def _always(owner: ast.AST) -> Iterator[tuple[ast.AST, frozenset[str]]]:
    """Parts of what a function or a module does in any case, with the names that count the loops
    around: what hangs on a test of its own need not have been done."""
    waiting = [(statement, frozenset[str]()) for statement in getattr(owner, "body", ())]
    while waiting:
        statement, counted = waiting.pop()
        match statement:
            case ast.For(target=target, body=body) | ast.AsyncFor(target=target, body=body):
                counted |= {part.id for part in parts_of(target) if isinstance(part, ast.Name)}
                waiting += [(inner, counted) for inner in body]
            case ast.While(body=body) | ast.With(body=body) | ast.AsyncWith(body=body):
                waiting += [(inner, counted) for inner in body]
            case ast.If(test=test, body=body) if "__name__" in ast.dump(test):
                waiting += [(inner, counted) for inner in body]
            case ast.If(body=body, orelse=orelse) if counted:
                # `if loss < best: torch.save(...)`: once at the least.
                waiting += [(inner, counted) for inner in (*body, *orelse)]
            case ast.Expr() | ast.Assign():
                yield from ((part, counted) for part in parts_of(statement))
            case _:
                continue


def _saves(point: Point, owner: ast.AST) -> Iterator[tuple[ast.Call, frozenset[str]]]:
    for part, counted in _always(owner):
        called = isinstance(part, ast.Call) and len(part.args) > 1
        if called and point.dotted(part.func) == "torch.save":  # type: ignore[attr-defined]
            yield part, counted  # type: ignore[misc]


def _saved(point: Point, owner: ast.AST) -> dict[str, int]:
    """The files that are saved, and in which line at the soonest."""
    found: dict[str, int] = {}
    for call, _ in _saves(point, owner):
        name = ast.dump(call.args[1])
        found[name] = min(call.lineno, found.get(name, call.lineno))
    return found


def _saved_in_loops(point: Point, owner: ast.AST) -> dict[str, int]:
    """The same for a file of each turn of a loop: one of them is loaded afterwards."""
    found: dict[str, int] = {}
    for call, counted in _saves(point, owner):
        name = call.args[1]
        if any(isinstance(part, ast.Name) and part.id in counted for part in parts_of(name)):
            found.setdefault(_pattern(name), call.lineno)
    return found


def _pattern(file: ast.expr) -> str:
    """A file's name as it is written; where a text is formatted, whatever is put in."""
    text = ast.dump(file)
    return _NAMES.sub("Name()", text) if _FORMATTED.search(text) is not None else text


def _is_best(context: Context, node: ast.Call, owner: ast.AST) -> bool:
    """Whether the best model of a training is loaded at its end: ``early_stopping(loss, model,
    path)`` had saved it where the name begins."""
    stopping = context.once(_stopping, owner)
    if not stopping:
        return False
    stored = context.once(_stored, owner)
    names = _names(node.args[0])
    names = names.union(*(stored.get(name, ()) for name in names))
    return any(stopping.get(name, node.lineno) < node.lineno for name in names)


def _stopping(_: Point, owner: ast.AST) -> dict[str, int]:
    """The folders that the best model is saved in, and in which line."""
    return {
        part.args[-1].id: part.lineno
        for part, _ in _always(owner)
        if isinstance(part, ast.Call)
        and len(part.args) > 1
        and isinstance(part.args[-1], ast.Name)
        and _STOPPING.search(spelled(part.func)) is not None
    }


def _stored(_: Point, owner: ast.AST) -> dict[str, set[str]]:
    """By name, the names that its value is made of."""
    found: dict[str, set[str]] = {}
    for statement in getattr(owner, "body", ()):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found.setdefault(statement.targets[0].id, set()).update(_names(statement.value))
    return found


def _names(value: ast.AST) -> set[str]:
    """The variables that a value is made of, not those that only hold others."""
    parts = parts_of(value)
    holders = {id(part.value) for part in parts if isinstance(part, ast.Attribute)}
    return {p.id for p in parts if isinstance(p, ast.Name) and id(p) not in holders}


def _holds_host_state(context: Context) -> bool:
    """Whether the state of a schedule, a scaler or a random generator is loaded: numbers and host
    tensors."""
    statement = context.statement
    if not isinstance(statement, ast.Expr | ast.Assign):
        return False
    return _HOST_STATE.search(context.segment(statement).lower()) is not None


def _is_data(context: Context, node: ast.Call) -> bool:
    """Whether samples or statistics are loaded, by the names around: those are written from the
    host, unlike weights."""
    if (context.dotted(node.func) or "").startswith("torch.jit."):
        return False
    if _TOKENS.search(context.source.path.rpartition("/")[2]):
        return True
    owner = context.scope.enclosing("class")
    if owner is not None and isinstance(owner.node, ast.ClassDef):
        bases = (spelled(base) for base in owner.node.bases)
        if any(_SAMPLES.search(name) for name in (owner.name, *bases)):
            return True
    statement = context.statement
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    named = [part for target in (*targets, node.args[0]) for part in parts_of(target)]
    words = [getattr(part, "id", getattr(part, "attr", "")) for part in named]
    words += [p.value for p in named if isinstance(p, ast.Constant) and isinstance(p.value, str)]
    if any(_WEIGHTS.search(word.lower()) for word in words):
        return False
    return any(_DATA.search(word.lower()) for word in words)


def _holds_numbers(context: Context) -> bool:
    """Whether the class writes such files itself, and tables of plain numbers only.

    Read off the text: a method that only saves was not parsed.
    """
    owner = context.scope.enclosing("class")
    if owner is None or not isinstance(owner.node, ast.ClassDef):
        return False
    lines = context.source.lines[owner.node.lineno :]
    indent = owner.node.col_offset
    end = next(
        (n for n, line in enumerate(lines) if line.strip() and not line[: indent + 1].isspace()),
        len(lines),
    )
    header = context.source.lines[owner.node.lineno - 1]
    text = without_texts("\n".join([header, *lines[:end]]))
    saved = _SAVED.findall(text)
    tables = [
        re.search(rf"\b{name}\s*=\s*\{{(.*?)\}}", text, re.DOTALL) for name in saved if name != "{"
    ]
    if not saved or not all(tables):
        return False
    numbers = all(
        _NUMBERS.fullmatch(entry)
        for table in tables
        if table is not None
        for entry in table[1].split(",")
        if entry.strip()
    )
    return (numbers and "{" not in saved) or not _TENSORS.search(text)


RULE = Rule(
    code="DEV114",
    name="load-without-map-location",
    severity=Severity.WARNING,
    summary="torch.load has no map_location",
    why=(
        "A file saved on CUDA asks for CUDA when it is loaded, and loading raises on a machine "
        "without it."
    ),
    remedy='Pass `map_location="cpu"` and move the tensors afterwards, or None only where CUDA was found.',
    invalid=(
        Bad(
            "import torch\nstate = torch.load('x.pt')",
            2,
            "import torch\nstate = torch.load('x.pt', map_location=None if torch.cuda.is_available() else \"cpu\")",
        ),
        Bad(
            "import torch\nstate = torch.load('x.pt', weights_only=True)",
            2,
            "import torch\nstate = torch.load('x.pt', map_location=None if torch.cuda.is_available() else \"cpu\", weights_only=True)",
        ),
        Bad("from torch import load\nstate = load('x.pt')", 2),
        Bad(
            "import torch\ndef main(model, resume):\n    if resume:\n        model = torch.load('last.pt')\n"
            "    torch.save(model, 'last.pt')",
            4,
        ),
        Bad(
            "import torch\ndef main(model, args):\n    if args.train:\n        torch.save(model, 'm.pt')\n"
            "    else:\n        model = torch.load('m.pt')",
            6,
        ),
        Bad(
            "import torch\ndef main(model, out, start):\n    torch.save(model, f'{out}/m.pt')\n"
            "    return torch.load(f'{start}/m.pt')",
            4,
        ),
        Bad(
            "import torch\ndef main(args):\n    early_stopping = EarlyStopping(2, args)\n    return torch.load(args.start)",
            4,
        ),
        Bad(
            "import torch\nmodel = torch.load((path))",
            2,
            'import torch\nmodel = torch.load((path), map_location=None if torch.cuda.is_available() else "cpu")',
        ),
        Bad(
            "import torch\ndef keep(model):\n    torch.save(model, 'last.pt')\nmodel = torch.load('last.pt')",
            4,
        ),
        Bad(
            "import torch\nmodel = torch.jit.load('x.pt')",
            2,
            "import torch\nmodel = torch.jit.load('x.pt', map_location=None if torch.cuda.is_available() else \"cpu\")",
        ),
        Bad("import torch\nstats_model = torch.load('stats_model.pt')", 2),
        Bad("import torch as t\nstate = t.load('x.pt')", 2),
        Bad(
            "import torch\nclass Cache:\n    def save(self, value, path):\n        torch.save(value, path)\n"
            "    def load(self, path):\n        return torch.load(path)",
            6,
        ),
    ),
    valid=(
        "import torch\ndef f(path):\n    return torch.load(path)[0].transpose(0, 1).numpy()",
        "import torch\nstate = torch.load('x.pt', map_location='cpu')",
        "import torch\nstate = torch.load('x.pt', 'cpu')",
        "import torch\ndef f(path, **options):\n    return torch.load(path, **options)",
        "import torch\ndef f(x, path):\n    if x.is_cuda:\n        return torch.load(path)",
        "import io, torch\ndef f(x):\n    buffer = io.BytesIO(x.cpu().numpy())\n    return torch.load(buffer)",
        "import torch\nclass Schedule:\n    def save(self, path):\n        data = {'steps': self.steps}\n"
        "        torch.save(data, path)\n    def load(self, path):\n        data = torch.load(path)\n"
        "        self.steps = data['steps']",
        "import torch\nclass Model(torch.nn.Module):\n    def keep(self, mean, path):\n        data = {'mean': mean.item()}\n"
        "        torch.save(data, path)\n    def load(self, path):\n        return torch.load(path)['mean']",
        "import torch\ndef same(path, shown):\n    if torch.load(path) != shown:\n        print('changed')",
        "import torch\ndef copy(x, path):\n    torch.save(x, path)\n    return torch.load(path)",
        "import torch\nfor epoch in range(9):\n    torch.save(step(), '{}.pkl'.format(epoch))\n"
        "model = torch.load('{}.pkl'.format(best))",
        "import torch\ndef train(model, folder):\n    stopping = EarlyStopping()\n    early_stopping(loss(), model, folder)\n"
        "    best = folder + '/' + 'checkpoint.pth'\n    model.load_state_dict(torch.load(best))",
        "import torch\ndef best(epochs):\n    for epoch in epochs:\n        torch.save(step(), f'{epoch}.pkl')\n"
        "    first = min(epochs)\n    return torch.load(f'{first}.pkl')",
        "import torch\ndef resume(scheduler, path):\n    scheduler.load_state_dict(torch.load(path))",
        "import torch\ndef resume(path):\n    rng_state = torch.load(path)\n    return rng_state",
        "import json\nstate = json.load(open('x.json'))",
    ),
    hooks={"call": _call},
    fixable=True,
)

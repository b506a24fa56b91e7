"""Lines that run in one of several processes, in containers or for CUDA's own tools alone."""

from __future__ import annotations

import pytest

from conformance.scan.judging.analysis import analyse
from conformance.scan.judging.rules import RULES

HEAD = "import os\nimport torch\nimport torch.distributed as dist\n"


@pytest.mark.parametrize(
    ("code", "severities"),
    [
        # behind a test for several processes; beside it
        ("def f(m, args):\n    if args.distributed:\n        m.cuda(args.gpu)", ["note"]),
        ("def f(m, args):\n    if args.distributed:\n        pass\n    else:\n        m.cuda()", ["error"]),
        ("def f(m, args):\n    if not args.distributed:\n        m.cuda()", ["error"]),
        ("def f(m, distributed):\n    if not distributed:\n        pass\n    else:\n        m.cuda()", ["note"]),
        ("def f(m, num_gpus):\n    if num_gpus > 1:\n        m.cuda()\n        dist.init_process_group('nccl')", ["note", "note"]),
        ("def f(m, num_layers):\n    if num_layers > 1:\n        m.cuda()", ["error"]),
        # a rank where the group is made; a rank anywhere else
        ("def f(rank):\n    torch.cuda.set_device(rank)\n    dist.init_process_group('gloo')", ["note"]),
        ("def f(rank):\n    torch.cuda.set_device(rank)", ["error"]),
        # after a group of NCCL's, which nothing gets past without CUDA; perhaps after one
        ("def f(m):\n    dist.init_process_group('nccl')\n    m.cuda()", ["error", "note"]),
        ("def f(m):\n    m.cuda()\n    dist.init_process_group('nccl')", ["error", "error"]),
        ("def f(m, way):\n    dist.init_process_group(way)\n    m.cuda()", ["error"]),
        # a tensor for a collective; one that is used besides
        ("def f(n):\n    t = torch.tensor(n, device='cuda')\n    dist.all_reduce(t)", ["note"]),
        ("def f(n):\n    t = torch.tensor(n, device='cuda')\n    return t", ["error"]),
        ("def f(n):\n    t = torch.tensor(n, device=torch.cuda.current_device())\n    dist.all_reduce(t)", ["note"]),
        # what one process alone has left
        ("def f(n):\n    if world_size() == 1:\n        return n\n    return torch.empty(n, device='cuda')", ["note"]),
        ("def f(n):\n    if n == 1:\n        return n\n    return torch.empty(n, device='cuda')", ["error"]),
        # a function that is named for several processes, or collects from them; one that does not
        ("def dist_validation(n):\n    return torch.zeros(n, device='cuda')", ["note"]),
        ("def collect_results(n):\n    t = torch.zeros(n, device='cuda')\n    dist.all_gather(n, t + 1)", ["note"]),
        ("def collect_results(n):\n    return torch.zeros(n, device='cuda')", ["error"]),
        ("def all_gather_cpu(n, group):\n    d = 'cuda' if group is None else 'cpu'\n    return torch.ones(n).to(d)", ["note"]),
        ("def init_ddp():\n    dist.init_process_group('nccl')", ["note"]),
        ("class DistributedTrainer:\n    def move(self, x, rank):\n        device = torch.device(f'cuda:{rank}')\n        return x.to(device)", ["note"]),
        ("def multi_gpu_test(x):\n    return x.cuda()", []),
        ("class MyDistributedDataParallel:\n    def scatter(self, x):\n        return x.cuda()", []),
        # settings that a process group reads; the group itself
        ("settings = dict(dist_backend='nccl')", ["note"]),
        ("def f(backend='nccl'):\n    start(backend)", ["note"]),
        ("def f(rank):\n    if rank < 0:\n        return\n    dist.init_process_group('nccl')", ["note"]),
        ("dist.init_process_group('nccl')", ["error"]),
        # a function that starts the group, called for several processes alone; also without a test
        ("def f():\n    dist.init_process_group('nccl')\nif 'WORLD_SIZE' in os.environ:\n    f()", ["note"]),
        ("def f():\n    dist.init_process_group('nccl')\nif 'WORLD_SIZE' in os.environ:\n    f()\nf()", ["error"]),
        ("def f():\n    dist.init_process_group('nccl')\ndef main():\n    " + "print('long')\n    " * 99 + "if 'WORLD_SIZE' in os.environ:\n        f()", ["note"]),
        ("def f():\n    dist.init_process_group('nccl')", ["error"]),
        # double precision for a collective, in any case or perhaps
        ("def f(n, device):\n    t = torch.zeros(n, dtype=torch.float64, device=device)\n    dist.all_reduce(t)", ["note"]),
        ("def f(n, device, many):\n    t = torch.zeros(n, dtype=torch.float64, device=device)\n    if many:\n        dist.all_reduce(t)", ["warning"]),
        # a type that is meant for its dtype; a test of it is a branch like any other
        ("def f(x):\n    assert isinstance(x, torch.cuda.LongTensor)", ["note"]),
        ("def f(x):\n    return isinstance(x, torch.cuda.LongTensor)", []),
        # CUDA's graphs, what CUDA raises, the GPU asked for by an option
        ("def f():\n    return torch.cuda.graphs.graph_pool_handle()", ["note"]),
        ("try:\n    f()\nexcept torch.cuda.OutOfMemoryError:\n    torch.cuda.empty_cache()", []),
        ("try:\n    f()\nexcept RuntimeError as e:\n    if 'CUDA out' not in str(e):\n        raise\n    torch.cuda.empty_cache()", []),
        ("try:\n    f()\nexcept RuntimeError as e:\n    if 'out of' not in str(e):\n        raise\n    torch.cuda.empty_cache()", ["warning"]),
        # TensorRT's files; a name that was tried to import, called whatever happens or perhaps
        ("def f(x, trt_file=None):\n    if trt_file is not None:\n        x.cuda()", []),
        ("try:\n    from cupy import fuse\nexcept ImportError:\n    pass\ndef f(x):\n    x = fuse(x)\n    return x.cuda()", []),
        ("try:\n    from cupy import fuse\nexcept ImportError:\n    pass\ndef f(x, y):\n    if y:\n        x = fuse(x)\n    return x.cuda()", ["error"]),
        ("try:\n    from cupy import fuse\nexcept ImportError:\n    def fuse(x):\n        return x\ndef f(x):\n    x = fuse(x)\n    return x.cuda()", ["error"]),
        ("try:\n    from cupy import fuse\nexcept ImportError:\n    fuse = None\ndef f(x):\n    x = fuse(x)\n    return x.cuda()", []),
        ("def f(m, args):\n    if args.gpu is not None:\n        m.cuda(args.gpu)", ["warning"]),
        # containers; a callback runs whatever it is called
        ("from cog import BasePredictor\nclass P(BasePredictor):\n    def setup(self, m):\n        m.to('cuda')", []),
        ("from cog import BasePredictor\nclass P(BasePredictor):\n    def setup(self):\n        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'", []),
        ("class CUDACallback(Callback):\n    def on_start(self):\n        torch.cuda.synchronize()", ["error"]),
        # samples are written from the host, weights wherever they were
        ("class D(torch.utils.data.Dataset):\n    def __getitem__(self, i):\n        return torch.load(self.files[i])", ["note"]),
        ("def f(path):\n    mel = torch.load(path)\n    return mel", ["note"]),
        ("def f(path):\n    model_data = torch.load(path)\n    return model_data", ["warning"]),
        # a collective by its name, a rank beside the CPU, a class of an engine's, a script for CUDA
        ("def allreduce(x):\n    return mean(x.cuda())", ["note"]),
        ("def f(rank, cuda):\n    dist.init_process_group('gloo')\n    return torch.device('cuda', rank) if torch.cuda.is_available() else torch.device('cpu')", ["note"]),
        ("import bitsandbytes as bnb\nclass Linear(bnb.nn.Linear8bitLt):\n    def quantize(self, w):\n        return w.cuda()", ["note"]),
        ("import apex\ndef main():\n    assert torch.cuda.is_available(), 'no CPU'\nif __name__ == '__main__':\n    main()", ["note"]),
        ("import apex\ndef main():\n    pass\nif __name__ == '__main__':\n    main()", ["warning"]),
        # wrapped for several cards whatever happens, or if there are several
        ("def f(m, x, gpu):\n    m = DDP(m, device_ids=[gpu])\n    return m(x.cuda(gpu))", []),
        ("def f(m, x, gpu):\n    if gpu > 1:\n        m = DDP(m, device_ids=[gpu])\n    return m(x.cuda(gpu))", ["error"]),
        # who has no CUDA is told that it is needed, or not
        ("def f():\n    if not torch.cuda.is_available():\n        print('measuring requires CUDA')\n        return\n    return torch.cuda.memory_allocated()", []),
        ("def f():\n    if not torch.cuda.is_available():\n        return\n    return torch.cuda.memory_allocated()", ["warning"]),
        # the choice that stands before it; one that goes on after a word
        ("def f(m):\n    d = 'cuda' if torch.cuda.is_available() else 'cpu'\n    if not torch.cuda.is_available():\n        print('measuring requires CUDA')\n        return\n    m.to(d)", []),
        ("def f(m):\n    d = 'cuda' if torch.cuda.is_available() else 'cpu'\n    if not torch.cuda.is_available():\n        print('measuring requires CUDA')\n    m.to(d)", ["warning"]),
        # a buffer is placed; what is printed for one item of many goes on unnoticed
        ("class B(torch.nn.Module):\n    def __init__(self):\n        self.register_buffer('k', torch.zeros(2).cuda())", ["error"]),
        ("def f(batches):\n    for b in batches:\n        try:\n            b = b.cuda()\n            c = run(b)\n            d = run(c)\n            save(d)\n        except Exception as e:\n            print(e)", ["error"]),
        ("def f(b):\n    try:\n        b = b.cuda()\n    except Exception as e:\n        print(e)", []),
        # a test that answers in a loop or within another: not known, unless it can only say no
        ("def ok(x):\n    if x is not None:\n        if x.flag:\n            return True\n    return x.is_cuda\ndef f(x):\n    return x.to('cuda') if ok(x) else x", ["error"]),
        ("def ok(x):\n    for y in x:\n        if y:\n            return True\n    return x.is_cuda\ndef f(x):\n    return x.to('cuda') if ok(x) else x", ["error"]),
        ("def ok(x):\n    if not torch.cuda.is_available():\n        return False\n    for y in x:\n        if y:\n            return False\n    return True\ndef f(x):\n    return x.to('cuda') if ok(x) else x", ["warning"]),
        # one process is what there is without CUDA as well
        ("def f(m, local_rank):\n    if local_rank == -1:\n        m.cuda()\n    else:\n        torch.cuda.set_device(local_rank)", ["error", "error"]),
        ("def f(m, world_size):\n    if world_size > 0:\n        m.cuda()", ["error"]),
        ("def f(m, local_rank):\n    if local_rank in (-1, 0):\n        m.cuda()", ["error"]),
        # what a decorator switches, and what it guards
        ("@torch.cuda.amp.autocast(enabled=False)\ndef f(x):\n    return x.to('cuda')", ["note", "error"]),
        ("@torch.cuda.nvtx.range('s')\ndef f(x):\n    return x.to('cuda')", ["error"]),
        ("@requires_cuda\ndef f(x):\n    return x.to('cuda')", []),
        # an option that is on by default, and one that is asked about first
        ("p.add_argument('--use_cuda', default=True)\nif args.use_cuda:\n    net.cuda()", ["warning"]),
        ("p.add_argument('--use_cuda', default=True)\nif not torch.cuda.is_available():\n    args.use_cuda = False\nif args.use_cuda:\n    net.cuda()", []),
        # switched off by its own place
        ("def f(x):\n    with torch.cuda.amp.autocast(True, torch.float16, False):\n        return x", ["warning"]),
        ("def f(x):\n    with torch.cuda.amp.autocast(False):\n        return x", ["note"]),
        ("def f(x):\n    if x.is_cuda:\n        x = x.cuda(1)\n    return x", []),
        # a helper that is called to find out
        ("def has():\n    def _try():\n        torch.zeros(1, device='cuda')\n    try:\n        _try()\n    except Exception:\n        return False", ["note"]),
    ],
)  # fmt: skip
def test_circumstances(code: str, severities: list[str]) -> None:
    found = analyse("m.py", (HEAD + code).encode(), RULES)
    assert [f.severity.label for f in found] == severities


@pytest.mark.parametrize(("device", "severity"), [("'mps'", "note"), ("device", "warning")])
def test_a_test_that_names_mps_asks_what_happens_there(device: str, severity: str) -> None:
    code = f"{HEAD}def test_it(device):\n    torch.ones(2, dtype=torch.float64, device={device})\n"
    found = analyse("tests/test_m.py", code.encode(), RULES)
    assert [(f.code, f.severity.label) for f in found if f.code == "DEV108"] == [
        ("DEV108", severity)
    ]


def test_a_benchmark_measures_the_machine_it_was_written_for() -> None:
    code = f"{HEAD}def run(x):\n    return x.cuda()\n"
    for path, label in (
        ("benchmarks/ops.py", "warning"),
        ("bench_ops.py", "warning"),
        ("ops.py", "error"),
    ):
        assert [f.severity.label for f in analyse(path, code.encode(), RULES)] == [label]

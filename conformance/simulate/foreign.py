"""Runs another project's test suite on the CPU and on the simulated Mac, and explains what changes.

`python -m conformance.simulate.foreign NAME --sources FOLDER` wants the project's checkout in
`FOLDER/NAME` at the commit that it names, and its needs beside this Python or `--python`. It
downloads nothing. Each test that passes on the CPU and fails simulated is a limit of the Mac, an
assumption of the project, something the simulation says it cannot show, or unexplained.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from conformance.simulate.device import BACKEND, HOST
from conformance.simulate.limits import MISTAKES

LIMIT = "limit of the Mac"
ASSUMPTION = "assumption of the project"
NOT_SHOWN = "not simulated, and refused in a line that says so"
DOWNLOAD = "wants a download, and a run here makes none"
UNEXPLAINED = "UNEXPLAINED"

_LIMIT = re.compile(r"simulated failure '([\w-]+)'")
_NOT_SHOWN = "is not simulated: what traces"
_DOWNLOADS = re.compile(
    r"LocalEntryNotFoundError|OfflineModeIsEnabled|does not appear to have a file named"
    r"|couldn't connect to 'https"
)
_DEVICE = re.compile(r"\b(cpu|mps)(:0)?\b")


@dataclass(frozen=True)
class Reason:
    """Why tests whose name and message match change without meeting a limit."""

    test: str
    text: str
    kind: str
    why: str

    def fits(self, test: str, text: str) -> bool:
        """Whether it speaks of this failure."""
        return bool(re.search(self.test, test)) and bool(re.search(self.text, text))


@dataclass(frozen=True)
class Suite:
    """One project's tests: where they are, how they are run, and what is known of them."""

    repository: str
    commit: str
    tests: tuple[str, ...]
    on_host: tuple[str, ...] = ()
    on_device: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    """Its environment, where `{device}` stands for the device."""
    source: str = ""
    """The folder, if any, that its package is imported from."""
    reasons: tuple[Reason, ...] = ()


def _named(form: str, parts: str) -> tuple[str, ...]:
    return tuple(form.format(part) for part in parts.split())


_BY_DEFAULT = ("-p", "conformance.simulate.pytest_plugin", "--mps-sim-default")
"""For suites that name no device: theirs is the default."""

SUITES = {
    "kornia": Suite(
        "https://github.com/kornia/kornia",
        "b4f5a78a13891c7ac4c1cd9695941380273e981d",
        _named(
            "tests/{}",
            "augmentation color contrib core enhance filters geometry image integration "
            "losses metrics morphology sensors tracking",
        ),
        ("--device", "cpu"),
        ("--device", "mps"),
        ("kornia_rs",),
        reasons=(
            Reason(
                r"TestColorJitterGen.*::test_(random_gen|same_on_batch)",
                r"not close",
                ASSUMPTION,
                "compares the device's stream with numbers of the CPU's; fails so on Macs: "
                "https://github.com/kornia/kornia/issues/4146",
            ),
            Reason(
                r"TestImageRegistrator.*::test_register_with_shape_mismatch",
                r"must be on the same device",
                ASSUMPTION,
                "makes its homography on the host; fails so on Macs: "
                "https://github.com/kornia/kornia/issues/4159",
            ),
        ),
    ),
    "accelerate": Suite(
        "https://github.com/huggingface/accelerate",
        "16cb6eb80dd9aa8b4df1a63ef57863e455d53b83",
        _named(
            "tests/test_{}.py",
            "accelerator big_modeling hooks modeling_utils optimizer scheduler data_loader "
            "memory_utils offload kwargs_handlers utils state_checkpointing grad_sync "
            "dataclasses logging load_checkpoint_and_dispatch_with_broadcast",
        ),
        needs=("parameterized",),
        source="src",
    ),
    "peft": Suite(
        "https://github.com/huggingface/peft",
        "5d602fd",
        ("tests/test_custom_models.py",),
        needs=("parameterized", "datasets"),
        source="src",
        reasons=(
            Reason(
                r"test_disable_adapters\[.*PVeRA",
                r"nan",
                ASSUMPTION,
                "its training becomes NaN by the luck of the numbers drawn: on the CPU too, with "
                "1000 added to each seed: https://github.com/huggingface/peft/blob/5d602fd/tests/"
                "test_custom_models.py",
            ),
            Reason(
                r"test_multiple_active_adapters.*AdaMSS Same",
                r"assert not True",
                ASSUMPTION,
                "it seeds every device and saves the streams of the CPU and CUDA alone, so that on "
                "a Mac both adapters draw the same numbers: https://github.com/huggingface/peft/"
                "blob/5d602fd/src/peft/tuners/adamss/utils.py, slice_pca",
            ),
            Reason(
                r"Fsdp",
                r"Custom backend 'mps' not implement 'torch.mps.current_device'",
                LIMIT,
                "torch's FSDP asks torch.mps for what it has on no Mac: "
                "https://docs.pytorch.org/docs/stable/mps.html",
            ),
        ),
    ),
    "vector-quantize-pytorch": Suite(
        "https://github.com/lucidrains/vector-quantize-pytorch",
        "0d7d1aa",
        ("tests",),
        on_device=_BY_DEFAULT,
        needs=("einops", "einx"),
    ),
    "x-transformers": Suite(
        "https://github.com/lucidrains/x-transformers",
        "9252ed7",
        ("tests/test_x_transformers.py",),
        on_device=_BY_DEFAULT,
        needs=("einops", "einx", "loguru", "torch-einops-utils"),
    ),
    "pytorch-metric-learning": Suite(
        "https://github.com/KevinMusgrave/pytorch-metric-learning",
        "216a792",
        _named("tests/{}", "distances losses miners reducers regularizers"),
        needs=("scikit-learn",),
        variables=(("TEST_DEVICE", "{device}"), ("TEST_DTYPES", "float16,float32")),
        source="src",
        reasons=(
            Reason(
                r"TestInstanceLoss",
                r"False_ is not true",
                ASSUMPTION,
                "holds half precision to 1e-3, which the numbers drawn may miss: so on the CPU with "
                "6 of the seeds 0 to 19: https://github.com/KevinMusgrave/pytorch-metric-learning/"
                "blob/216a792/tests/losses/test_instance_loss.py",
            ),
        ),
    ),
    "einops": Suite(
        "https://github.com/arogozhnikov/einops",
        "ccb89f2",
        ("einops/tests",),
        on_device=_BY_DEFAULT,
        variables=(("EINOPS_TEST_BACKENDS", "numpy,torch"),),
    ),
    "diffusers": Suite(
        "https://github.com/huggingface/diffusers",
        "58eb52c",
        (
            "tests/schedulers",
            *_named("tests/models/test_{}.py", "layers_utils activations attention_processor"),
            *_named("tests/models/unets/test_models_unet_{}.py", "1d 2d 2d_condition"),
            *_named(
                "tests/models/autoencoders/test_models_{}.py",
                "autoencoder_kl vq autoencoder_oobleck",
            ),
            *_named(
                "tests/models/transformers/test_models_{}.py",
                "dit_transformer2d pixart_transformer2d transformer_ace_step transformer_flux "
                "transformer_sd3 transformer_wan",
            ),
        ),
        needs=("parameterized", "requests_mock"),
        source="src",
        reasons=(
            Reason(
                r"",
                r"Using streams for data transfer requires a CUDA device",
                ASSUMPTION,
                "its group offloading takes streams of CUDA and XPU alone, and says so on a Mac: "
                "https://github.com/huggingface/diffusers/blob/58eb52c/src/diffusers/hooks/"
                "group_offloading.py",
            ),
        ),
    ),
}


@dataclass
class Result:
    """How one test ended, in how many seconds, and the words of its failure."""

    outcome: str
    seconds: float
    text: str = ""


@dataclass
class Comparison:
    """Two runs of one suite, test by test."""

    on_host: dict[str, Result]
    on_device: dict[str, Result]
    reasons: tuple[Reason, ...] = ()
    changed: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for test, there in self.on_device.items():
            here = self.on_host.get(test)
            if there.outcome == "failed" and (here is None or here.outcome != "failed"):
                self.changed[self.explained(test, there.text)].append(test)

    def explained(self, test: str, text: str) -> tuple[str, str]:
        """Of which kind a failure is, and why."""
        met = _LIMIT.search(text)
        first = text.splitlines()[0][:160] if text else ""
        if met is not None:
            return (ASSUMPTION if met.group(1) in MISTAKES else LIMIT), f"{met.group(1)}: {first}"
        if _NOT_SHOWN in text:
            return NOT_SHOWN, first
        if _DOWNLOADS.search(text):
            return DOWNLOAD, first
        known = next((reason for reason in self.reasons if reason.fits(test, text)), None)
        return (known.kind, known.why) if known else (UNEXPLAINED, first)

    @property
    def unexplained(self) -> list[str]:
        """Tests whose change may be the simulation's own fault."""
        found = [tests for (kind, _), tests in self.changed.items() if kind == UNEXPLAINED]
        return [test for tests in found for test in tests]

    def lines(self) -> list[str]:
        """What a person reads: outcomes, time, then what changed, by kind and reason."""
        both = [test for test in self.on_host if test in self.on_device]
        seconds = [
            sum(run[test].seconds for test in both) for run in (self.on_host, self.on_device)
        ]
        ways = Counter((self.on_host[t].outcome, self.on_device[t].outcome) for t in both)
        lines = [
            f"{len(both)} tests in both runs, {len(self.on_host) - len(both)} on the CPU only, "
            f"{len(self.on_device) - len(both)} on the device only",
            f"time: {seconds[0]:.0f} s on the CPU, {seconds[1]:.0f} s simulated "
            f"({seconds[1] / max(seconds[0], 1e-9):.2f} x)",
        ]
        lines += [
            f"{count:>6}  {here} on the CPU, {there} simulated"
            for (here, there), count in ways.most_common()
        ]
        for (kind, why), tests in sorted(self.changed.items(), key=lambda entry: -len(entry[1])):
            lines.append(f"{len(tests):>6}  {kind}: {why}")
            lines.append(f"        {tests[0]}" + (" and others" if len(tests) > 1 else ""))
        return lines


def results(path: Path) -> dict[str, Result]:
    """The tests of a JUnit file, by a name that does not say on which device they ran."""
    found = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = _DEVICE.sub("<device>", f"{case.get('classname')}::{case.get('name')}")
        result = Result("passed", float(case.get("time") or 0))
        for child in case:
            if child.tag in ("failure", "error"):
                result = Result(
                    "failed", result.seconds, f"{child.get('message') or ''}\n{child.text or ''}"
                )
            elif child.tag == "skipped":
                expected = child.get("type") == "pytest.xfail"
                result.outcome = "xfailed" if expected else "skipped"
        found[name] = result
    return found


@dataclass(frozen=True)
class Run:
    """One run of a suite: its JUnit file, and the processor's seconds it took."""

    junit: Path
    seconds: float


def run(suite: Suite, root: Path, python: str, tests: Sequence[str], target: Path) -> list[Run]:
    """Runs a suite on the CPU and simulated. Raises RuntimeError where a JUnit file is missing."""
    package = str(Path(__file__).parents[2])
    paths = [str(root / suite.source), package, *filter(None, [os.environ.get("PYTHONPATH")])]
    plain = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    simulated = [sys.executable, "-m", "conformance", "simulate", "mps", "--"]
    runs = []
    for name, device, before, arguments in (
        ("cpu", HOST.type, [], suite.on_host),
        ("simulated", BACKEND, simulated, suite.on_device),
    ):
        environment = plain | {
            variable: value.format(device=device) for variable, value in suite.variables
        }
        junit = target / f"{name}.xml"
        command = [*before, python, "-m", "pytest", *tests, *arguments, "-q", "--tb=native"]
        command += ["-p", "no:cacheprovider", f"--junitxml={junit}"]
        started = _used()
        with (target / f"{name}.log").open("w", encoding="utf-8") as log:
            subprocess.run(command, cwd=root, env=environment, stdout=log, stderr=log, check=False)
        if not junit.exists():
            raise RuntimeError(f"no result of the run on {name}; see {target / f'{name}.log'}")
        runs.append(Run(junit, _used() - started))
    return runs


def _used() -> float:
    """The processor's seconds that finished child processes took, whatever else was running."""
    times = os.times()
    return times.children_user + times.children_system


def main(arguments: list[str] | None = None) -> int:
    """Prints the comparison; returns 1 where a change is unexplained, 2 for a wrong request."""
    parser = argparse.ArgumentParser(prog="python -m conformance.simulate.foreign")
    parser.add_argument("name", choices=sorted(SUITES))
    parser.add_argument("--sources", type=Path, required=True, help="the folder of checkouts")
    parser.add_argument("--python", default=sys.executable, help="a Python with the suite's needs")
    parser.add_argument("--out", type=Path, help="keep logs and JUnit files in this folder")
    parser.add_argument("tests", nargs="*", help="these of its tests only")
    options = parser.parse_intermixed_args(arguments)
    suite, root = SUITES[options.name], options.sources / options.name
    if not root.is_dir():
        needs = f", and {', '.join(suite.needs)} installed" if suite.needs else ""
        sys.stderr.write(
            f"no checkout at {root}: expected {suite.repository} at {suite.commit}{needs}\n"
        )
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        target = options.out or Path(scratch)
        target.mkdir(parents=True, exist_ok=True)
        try:
            here, there = run(suite, root, options.python, options.tests or suite.tests, target)
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        compared = Comparison(results(here.junit), results(there.junit), suite.reasons)
    spent = (
        f"processor: {here.seconds:.0f} s on the CPU, {there.seconds:.0f} s simulated "
        f"({there.seconds / max(here.seconds, 1e-9):.2f} x), with starting and collecting"
    )
    sys.stdout.write("\n".join([*compared.lines(), spent]) + "\n")
    return 1 if compared.unexplained else 0


if __name__ == "__main__":
    raise SystemExit(main())

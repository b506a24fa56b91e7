"""The command ``conformance scan``.

What only some options need is imported where they are handled: the command starts quickly.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conformance import __version__
from conformance.scan.answering.report import reporter
from conformance.scan.answering.report.text import printable, statistics
from conformance.scan.answering.versions import parse_version, required_torch
from conformance.scan.config import FORMATS, Config, find_root, load_config
from conformance.scan.errors import ConfigError
from conformance.scan.findings import Finding, Severity
from conformance.scan.knowing.foreign import ALONE
from conformance.scan.reading.discover import Target, discover
from conformance.scan.reading.source import read_bytes
from conformance.scan.runner import Outcome, scan, scan_text

CLEAN, FOUND, FAILED = 0, 1, 2
_DESCRIPTION = (
    "Find code and settings that work only on CUDA, or on one device only. Nothing is run. "
    "Exit status: 0 clean, 1 findings, 2 could not run."
)


def _codes(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``conformance scan``."""
    add = parser.add_argument
    add(
        "paths", nargs="*", default=[], metavar="PATH", help="files or folders; - is standard input"
    )
    choice = parser.add_argument_group("what is reported").add_argument
    choice("--select", type=_codes, metavar="CODES", help="only these rules (codes or their start)")
    choice("--ignore", type=_codes, metavar="CODES", help="not these rules")
    choice("--exclude", action="append", metavar="GLOB", help="leave out paths, as in .gitignore")
    choice("--severity", metavar="LEVEL", help="least severity: error, warning (default) or note")
    choice("--baseline", metavar="FILE", help="report only what this file does not know")
    choice("--update-baseline", action="store_true", help="drop what is gone from the baseline")
    choice("--grow", action="store_true", help="let --update-baseline add what is new")
    choice("--diff", metavar="REV", help="report only lines changed since a git revision")
    out = parser.add_argument_group("output").add_argument
    out("--output-format", choices=FORMATS, help="default: concise")
    out("--output-file", metavar="FILE", help="write the report here")
    add("--version", action="version", version=f"conformance scan {__version__}")
    out("--statistics", action="store_true", help="counts by rule instead of findings")
    out("-q", "--quiet", action="store_true", help="no closing summary")
    out("--explain", metavar="CODE", help="explain a rule, or all of them, in Markdown")
    fix = parser.add_argument_group("fixes").add_argument
    fix("--fix", action="store_true", help="mend what can be mended without a change of meaning")
    fix("--unsafe-fixes", action="store_true", help="mend the rest as well; read the result")
    fix(
        "--torch-version",
        metavar="X.Y",
        help="oldest PyTorch that fixes may count on; default: what the project requires",
    )
    fix("--diff-only", action="store_true", help="print the fixes as a patch, change nothing")
    run = parser.add_argument_group("how it runs").add_argument
    run("--jobs", type=int, metavar="N", help="processes; 0 (default) is one a core")
    run("--no-cache", action="store_true", help="neither read nor write the cache")
    run("--cache-dir", metavar="DIR", help="default: .conformance_cache in the project")
    run("--config", metavar="FILE", help="read [tool.conformance.scan] from here")
    run("--isolated", action="store_true", help="read no configuration")
    run("--stdin-filename", metavar="NAME", default="stdin.py", help="name for standard input")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        "conformance scan", description=_DESCRIPTION, allow_abbrev=False
    )
    add_arguments(parser)
    return parser


def _config(options: argparse.Namespace) -> Config:
    root = find_root(Path.cwd())
    if options.isolated:
        config = Config(root)
    else:
        config = load_config(Path(options.config) if options.config else None, root)
    changes: dict[str, object] = {}
    for name in (
        "select",
        "ignore",
        "jobs",
        "cache_dir",
        "output_format",
        "baseline",
        "torch_version",
    ):
        value = getattr(options, name)
        if value is not None:
            changes[name] = value
    if options.exclude:
        changes["exclude"] = (*config.exclude, *options.exclude)
    if options.no_cache:
        changes["cache"] = False
    if options.severity is not None:
        try:
            changes["severity"] = Severity.parse(options.severity)
        except ValueError as error:
            raise ConfigError(f"--severity: {error}") from None
    config = replace(config, **changes)  # type: ignore[arg-type]
    if config.torch_version is not None:
        config = replace(config, torch=parse_version(config.torch_version))
    elif not options.isolated:
        config = replace(config, torch=required_torch(config.root))
    return config.checked()


def _emit(text: str, file: str | None = None) -> None:
    """Write to a file, or to standard output in whatever encoding it has."""
    if file is not None:
        try:
            Path(file).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error.strerror or error}") from None
        return
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _collect(
    options: argparse.Namespace, config: Config, *, telling: bool
) -> tuple[Outcome, list[Target]]:
    paths = options.paths or ["."]
    if "-" in paths:
        if len(paths) > 1:
            raise ConfigError("- (standard input) cannot be mixed with paths")
        name = options.stdin_filename
        return scan_text(sys.stdin.buffer.read(), name, config), [Target(name, name, name)]
    targets = discover(paths, config)
    if not targets:
        named = printable(", ".join(paths))
        sys.stderr.write(f"conformance scan: no file to scan in {named}: none found, or excluded\n")
    outcome = scan(targets, config, telling=telling)
    if outcome.read:
        sys.stderr.write(
            "conformance scan: nothing known of the rest of the project: "
            f"read its {_counted(outcome.read, 'other file')}\n"
        )
    return outcome, targets


def _mend(
    options: argparse.Namespace, config: Config, targets: list[Target], outcome: Outcome
) -> int:
    """Mend files (or print the patch); returns how many findings were mended."""
    from conformance.scan.answering.fixing import fix_source, patch
    from conformance.scan.answering.writing import replace_file

    wanted = {
        finding.path
        for finding in outcome.findings
        if finding.fix is not None and (finding.fix.safe or options.unsafe_fixes)
    }
    total = 0
    for target in targets:
        if target.shown not in wanted:
            continue

        def keep(finding: Finding, target: Target = target) -> bool:
            severity = outcome.severity(finding.at(target.shown))
            return severity >= config.severity and config.keeps(target.logical, finding.code)

        fixed = fix_source(
            target.logical,
            read_bytes(target.path),
            config.rules(),
            unsafe=options.unsafe_fixes,
            keep=keep,
            torch=config.torch,
            foreign=outcome.told.get(target.path, ALONE),
        )
        if fixed.after == fixed.before:
            continue
        total += fixed.count
        if options.diff_only:
            _emit(patch(printable(target.shown), fixed))
        else:
            replace_file(target.path, fixed.after, existing=True)
    return total


def _gate(
    options: argparse.Namespace, config: Config, targets: list[Target], outcome: Outcome
) -> tuple[list[Finding], str]:
    """What is left after the baseline and the restriction to a change, and what to say of it."""
    findings, changed = outcome.findings, None
    if options.diff is not None:
        from conformance.scan.answering.changes import changed_lines, touched

        changed = changed_lines(Path.cwd(), options.diff)
        findings = touched(findings, changed)
    if config.baseline is None:
        if options.update_baseline:
            raise ConfigError("--update-baseline needs --baseline FILE")
        return findings, ""
    from conformance.scan.answering import baseline as baselines
    from conformance.scan.answering.gate import Sight, judge

    path = Path(config.root, config.baseline) if not options.baseline else Path(config.baseline)
    first = options.update_baseline and options.grow and not path.exists()
    entries = [] if first else baselines.load(path)
    every = [*outcome.findings, *outcome.below]
    logical = {target.shown: target.logical for target in targets}
    sight = Sight.of(
        config.root,
        [rule.code for rule in config.rules()],
        config.keeps,
        options.paths or ["."],
        [target for target in targets if target not in outcome.passed],
        every,
        None if changed is None else set(changed),
    )
    # What a change did not touch was found all the same, and keeps its entries.
    shown = {id(finding) for finding in findings}
    hidden = [finding for finding in every if id(finding) not in shown]
    verdict = judge(findings, hidden, entries, sight, logical)
    if not options.update_baseline:
        return verdict.new, ""
    added = [baselines.Entry.of(f.at(logical.get(f.path, f.path))) for f in verdict.new]
    baselines.save(path, [*verdict.kept, *(added if options.grow else ())])
    recorded = f"{len(added)} recorded, " if options.grow else ""
    said = f"{recorded}{len(verdict.dropped)} dropped, {len(verdict.kept)} kept in {path}\n"
    return ([] if options.grow else verdict.new), said


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status. Raises ConfigError and OSError."""
    if options.explain is not None:
        from conformance.scan.answering.explain import explain

        _emit(explain(options.explain))
        return CLEAN
    if options.grow and not options.update_baseline:
        raise ConfigError("--grow only goes with --update-baseline")
    config = _config(options)
    fixing = options.fix or options.unsafe_fixes or options.diff_only
    outcome, targets = _collect(options, config, telling=fixing)
    mended = 0
    if fixing:
        if options.paths == ["-"]:
            raise ConfigError("standard input cannot be fixed: give a file")
        mended = _mend(options, config, targets, outcome)
        if options.diff_only:
            return FOUND if mended else CLEAN
        outcome = scan(targets, config)
    findings, said = _gate(options, config, targets, outcome)
    if options.statistics:
        _emit(statistics(findings, config.output_format), options.output_file)
    else:
        _emit(reporter(config.output_format)(findings), options.output_file)
    if not options.quiet:
        sys.stderr.write(said + _summary(findings, outcome, mended))
    return FOUND if findings else CLEAN


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(findings: list[Finding], outcome: Outcome, mended: int) -> str:
    """One closing line, on standard error, so that reports stay machine-readable."""
    fixable = sum(1 for finding in findings if finding.fix is not None and finding.fix.safe)
    parts = [f"{_counted(len(findings), 'finding')} in {_counted(outcome.files, 'file')}"]
    if mended:
        parts.append(f"{mended} mended")
    if fixable:
        parts.append(f"{fixable} fixable with --fix")
    return ", ".join(parts) + "\n" + _passed_over(outcome)


def _passed_over(outcome: Outcome) -> str:
    """The line that says which files were not looked at, and what they are read with."""
    if not outcome.passed:
        return ""
    files = _counted(len(outcome.passed), "file")
    return (
        f"{files} that are not Python (YAML, TOML, requirements, scripts) passed over: "
        "install conformance[configs] (PyYAML and packaging) to scan them\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0 clean, 1 findings, 2 could not run."""
    try:
        return run(build_parser().parse_args(argv))
    except ConfigError as error:
        sys.stderr.write(f"conformance scan: {printable(str(error))}\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename}"
        sys.stderr.write(f"conformance scan: {printable(reason)}\n")
    return FAILED


if __name__ == "__main__":
    sys.exit(main())

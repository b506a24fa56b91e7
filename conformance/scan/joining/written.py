"""Which files a project writes itself, and from where: what is loaded of them knows no CUDA."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from conformance.scan.findings import Finding
from conformance.scan.judging.summary import Summary

#: The key that is read of what is loaded.
_READ = re.compile(r"load\([^()]*\)\[[\"'](\w+)[\"']\]")


def saved_in(summaries: Iterable[Summary]) -> dict[str, list[str]]:
    """Where what some files save lies (``host``, ``device`` or nothing), by key; under no key
    that of each call."""
    saved: dict[str, list[str]] = {}
    for summary in summaries:
        for text in summary.saves:
            where, _, key = text.partition(":")
            saved.setdefault(key, []).append(where)
    return saved


def is_from_host(finding: Finding, saved: Mapping[str, list[str]]) -> bool:
    """Whether what a finding says is loaded was saved from the host: by the key that is read of
    it, else by most of what the project saves, if it saves nothing else that lies on a device."""
    if "jit" in finding.text:
        return False
    read = _READ.search(finding.source[0]) if finding.source else None
    by_key = saved.get(read[1], []) if read is not None else []
    if by_key:
        return set(by_key) == {"host"}
    every = saved.get("", [])
    return "device" not in every and every.count("host") > len(every) / 2

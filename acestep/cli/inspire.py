"""`acestep inspire`: a few words in, a song's caption, lyrics and metadata out."""

from __future__ import annotations

import argparse
from typing import Any

from acestep.cli.planner import add_sample_options, check_sampling, load, print_sample
from acestep.console.terminal import EXIT_OK, progress_bar, quiet_libraries
from acestep.errors import RequestError
from acestep.song import normalise


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "inspire",
        help="turn a few words into a song's description",
        description="Turn a few words into caption, lyrics and metadata, printed as YAML.",
    )
    parser.add_argument("query", help='for example "a rainy night in Lisbon"')
    parser.add_argument("--instrumental", action="store_true", help="no vocals")
    parser.add_argument("--language", dest="vocal_language", help="of the vocals, e.g. pt")
    add_sample_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the sample."""
    if not arguments.query.strip():
        raise RequestError("the query is empty; say in a few words what to make")
    normalise.language(arguments.vocal_language)
    check_sampling(arguments)
    from acestep.device import resolve

    policy = resolve(
        arguments.device,
        dtype=arguments.dtype,
        quantization=arguments.quantize,
        engine=arguments.engine,
    )
    from acestep.inference import create_sample

    quiet_libraries()
    planner = load(arguments, policy)
    with progress_bar(not (arguments.quiet or arguments.json)) as progress:
        sample = create_sample(
            planner,
            arguments.query,
            arguments.instrumental,
            arguments.vocal_language,
            temperature=arguments.temperature,
            seed=arguments.seed,
            progress=progress,
        )
    print_sample(sample, arguments.json, {"query": arguments.query})
    return EXIT_OK

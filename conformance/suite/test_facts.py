"""The ten facts of the note on MPS, asked of any tree in its own layout and without its weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conformance.entrypoints import covers
from conformance.tree import Absent, Tree
from conformance.trees.asking import Asking, Told
from conformance.trees.facts import choices, memory, placement, scoring, selection, song, training

Tell = Callable[[Told], None]

pytestmark = pytest.mark.names_cuda("facts are asked of every device, by name")


@pytest.mark.asks_a_fact
@covers("S1")
def test_the_score_is_computed_where_it_lies(ask: Asking, tell: Tell) -> None:
    tell(scoring.scored_where_it_lies(ask))


@pytest.mark.asks_a_fact
@covers("S2")
def test_every_device_is_told_from_every_other(ask: Asking, tell: Tell) -> None:
    tell(placement.told_for_every_device(ask))


@pytest.mark.asks_a_fact
@covers("S3")
def test_the_command_line_offers_mps(ask: Asking, tell: Tell) -> None:
    tell(choices.command_offers_mps(ask))


@pytest.mark.asks_a_fact
@covers("S3")
def test_the_page_offers_mps(ask: Asking, tell: Tell) -> None:
    tell(choices.page_offers_mps(ask))


@pytest.mark.asks_a_fact
@covers("S4", "A2")
def test_the_language_model_is_on_the_device(ask: Asking, tell: Tell) -> None:
    tell(selection.planner_picks_the_device(ask))


@pytest.mark.asks_a_fact
@covers("S5")
def test_the_command_line_begins_with_what_runs(ask: Asking, tell: Tell) -> None:
    tell(choices.command_backend(ask))


@pytest.mark.asks_a_fact
@covers("S5")
def test_the_page_begins_with_what_runs(ask: Asking, tell: Tell) -> None:
    tell(choices.page_backend(ask))


@pytest.mark.asks_a_fact
@covers("S5")
def test_vllm_without_cuda_falls_back(tree: Tree, ask: Asking, tell: Tell) -> None:
    """What a command line or page begins with where it is vllm also on machines without CUDA."""
    if tree.kin:
        raise Absent("our own tree has a language model built in, and cases of its own for it")
    tell(selection.planner_falls_back(ask))


@pytest.mark.asks_a_fact
@covers("S6")
def test_an_accelerator_counts(ask: Asking, tell: Tell) -> None:
    tell(memory.accelerator_counts(ask))


@pytest.mark.asks_a_fact
@covers("S7")
def test_a_step_casts_for_the_device(ask: Asking, tell: Tell) -> None:
    tell(training.cast_for_the_device(ask))


@pytest.mark.asks_a_fact
@covers("A2")
def test_the_music_model_is_on_the_device(ask: Asking, tell: Tell) -> None:
    tell(selection.service_picks_the_device(ask))


@covers("A1", "A3")
def test_a_song_from_end_to_end(tree: Tree, ask: Asking, tell: Tell) -> None:
    """Out of a tiny checkpoint of the tree's own model classes; nothing on the way acts on CUDA."""
    if tree.kin:
        raise Absent("our own tree has a checkpoint built in, and cases of its own for it")
    tell(song.made_from_end_to_end(ask))

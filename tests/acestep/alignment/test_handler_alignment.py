"""The handler's lyric timestamps and score: the right attention, one song, errors as lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from acestep.alignment.decoding import lyric_span
from acestep.alignment.heads import DEMO_HEADS
from acestep.alignment.service import song_inputs
from acestep.dit_alignment_score import MusicLyricScorer, MusicStampsAligner
from acestep.engines.torch import codec
from acestep.engines.torch.cross_attention import capture_cross_attention
from acestep.engines.torch.transformer import StepTransformer
from acestep.errors import RequestError
from acestep.handler import AceStepHandler

NOISE = torch.rand(2, 48000, generator=torch.Generator().manual_seed(3)) - 0.5
LYRICS = "[verse]\nHello world\nthis is a 夜空 song\n[chorus]\nla la la\n"


@pytest.fixture(scope="module")
def outputs(handler: AceStepHandler) -> dict[str, Any]:
    made = handler.generate_music("warm piano", lyrics=LYRICS, seed=7, audio_duration=6)
    assert made["success"], made["error"]
    extra: dict[str, Any] = made["extra_outputs"]
    return extra


@pytest.fixture
def inputs(outputs: dict[str, Any]) -> dict[str, Any]:
    return song_inputs(outputs)


def attention_at(handler: AceStepHandler, inputs: dict[str, Any], time: float) -> tuple[Any, Any]:
    """What the definition says to read: weights on the lyric tokens of `x_t`, and the ids."""
    assert handler.pipeline is not None
    ids = inputs["lyric_token_ids"]
    start, stop = lyric_span(handler.pipeline.tokenizer, ids)
    latent = inputs["pred_latent"]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(inputs["seed"]))
    weights = capture_cross_attention(
        handler.pipeline.transformer,
        {
            "hidden_states": time * noise + (1 - time) * latent,
            "timestep": torch.tensor([time]),
            "timestep_r": torch.tensor([time]),
            "encoder_hidden_states": inputs["encoder_hidden_states"],
            "context_latents": inputs["context_latents"],
        },
        DEMO_HEADS,
    )
    return weights[:, :, start:stop], ids[start:stop]


def test_timestamps_are_read_at_the_last_step(
    handler: AceStepHandler, inputs: dict[str, Any]
) -> None:
    assert handler.pipeline is not None
    found = handler.get_lyric_timestamp(**inputs, return_matrices=True)
    assert (found["success"], found["error"]) == (True, None)
    weights, ids = attention_at(handler, inputs, 1 / 8)
    aligner = MusicStampsAligner(handler.pipeline.tokenizer)
    info = aligner.stamps_align_info(weights, ids, 6.0, {0: range(4)})
    expected = aligner.get_timestamps_and_lrc(**info)
    assert {name: found[name] for name in expected} == expected
    assert "".join(stamp.text for stamp in found["token_timestamps"]) == LYRICS
    assert [line.split("]", 1)[1] for line in found["lrc_text"].splitlines()] == (
        LYRICS.strip().splitlines()
    )
    assert found["energy_matrix"].shape == (len(ids), 75)
    assert found["path_coords"][-1].tolist() == [len(ids) - 1, 74]


def test_score_of_the_song_and_of_noise(handler: AceStepHandler, inputs: dict[str, Any]) -> None:
    assert handler.pipeline is not None
    found = handler.get_lyric_score(**inputs)
    assert found["success"], found["error"]
    scorer = MusicLyricScorer(handler.pipeline.tokenizer)
    expected = []
    for time in (1 / 8, 1.0):
        weights, ids = attention_at(handler, inputs, time)
        info = scorer.lyrics_alignment_info(weights, ids, {0: range(4)})
        expected.append(scorer.calculate_score(**info))
    assert {name: found[name] for name in expected[0]} == expected[0]
    assert found["dit_score"] == expected[0]["lyrics_score"]
    assert found["lm_score"] == expected[1]["lyrics_score"]
    assert found["dit_score"] != found["lm_score"]


def test_steps_and_seed_matter(handler: AceStepHandler, inputs: dict[str, Any]) -> None:
    plain = handler.get_lyric_score(**inputs)["confidence"]
    for change in ({"inference_steps": 2}, {"seed": 8}):
        assert handler.get_lyric_score(**(inputs | change))["confidence"] != plain


def test_default_length_is_that_of_the_latents(
    handler: AceStepHandler, inputs: dict[str, Any]
) -> None:
    given = handler.get_lyric_timestamp(**inputs)
    default = handler.get_lyric_timestamp(**(inputs | {"total_duration_seconds": None}))
    assert default == given
    assert given["token_timestamps"][-1].end == pytest.approx(6.0 - 0.08)


def test_a_song_of_a_batch_is_what_it_is_alone(
    handler: AceStepHandler, outputs: dict[str, Any]
) -> None:
    first = handler.get_lyric_score(**song_inputs(outputs))
    tensors = ("latents", "encoder_hidden_states", "context_latents")
    batch = {n: torch.cat([-outputs[n], outputs[n]]) for n in tensors}
    pair = outputs | batch | {"seeds": [1, *outputs["seeds"]]}
    assert handler.get_lyric_score(**song_inputs(pair, 1)) == first
    assert handler.get_lyric_score(**song_inputs(pair, 0)) != first
    with pytest.raises(RequestError, match="no song 2 in a batch of 2"):
        song_inputs(pair, 2)


def test_heads_can_be_chosen(handler: AceStepHandler, inputs: dict[str, Any]) -> None:
    table = {layer: list(heads) for layer, heads in DEMO_HEADS.items()}
    plain = handler.get_lyric_score(**inputs)
    assert handler.get_lyric_score(**inputs, custom_layers_config=table) == plain
    assert handler.get_lyric_score(**inputs, custom_layers_config={"1": [2]}) != plain


def test_tags_alone_are_aligned_and_scored(handler: AceStepHandler) -> None:
    """The newline between two tags is a row of its own, and a lyric one."""
    tags = handler.condition_on_lyrics(NOISE, "[intro]\n[verse]")
    found = handler.get_lyric_timestamp(**song_inputs(tags))
    assert [line.text for line in found["sentence_timestamps"]] == ["[intro]", "[verse]"]
    score = handler.get_lyric_score(**song_inputs(tags))
    assert score["success"]
    assert score["coverage"] in (0.0, 1.0)
    assert score["monotonicity"] == 1.0


def failed(answer: dict[str, Any], message: str) -> None:
    """A failure has its line, and empty results of every kind."""
    assert answer["success"] is False
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    assert not any(v for k, v in answer.items() if k not in ("success", "error"))


def tensor_like(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A change of the inputs that replaces one tensor by something made of it."""
    return lambda inputs: {name: change(inputs[name])}


BAD: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "two songs": (tensor_like("pred_latent", lambda t: torch.cat([t, t])), "takes one song"),
    "no batch": (tensor_like("context_latents", lambda t: t[0]), "and [150, "),
    "frames differ": (tensor_like("context_latents", lambda t: t[:, 1:]), "differ in frames"),
    "channels differ": (tensor_like("pred_latent", lambda t: t[..., 1:]), "checkpoint takes ["),
    "width differs": (
        tensor_like("encoder_hidden_states", lambda t: t[..., :9]),
        "checkpoint takes [",
    ),
    "condition too short": (tensor_like("encoder_hidden_states", lambda t: t[:, :9]), "holds 9"),
    "padded condition": (lambda inputs: {"encoder_attention_mask": torch.ones(1, 7)}, "holds 7"),
    "no frames": (
        lambda inputs: {n: inputs[n][:, :0] for n in ("pred_latent", "context_latents")},
        "have none",
    ),
    "NaN": (tensor_like("pred_latent", lambda t: t * torch.nan), "NaN or infinity"),
    "no tokens": (lambda inputs: {"lyric_token_ids": []}, "no lyrics"),
    "no heading": (lambda inputs: {"lyric_token_ids": [61, 782, 63]}, "# Lyric"),
    "no steps": (lambda inputs: {"inference_steps": 0}, "number of steps 0"),
    "no such layer": (lambda inputs: {"custom_layers_config": {6: [0]}}, "6 layers of 6 heads"),
    "no such head": (lambda inputs: {"custom_layers_config": {0: [6]}}, "does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_line(handler: AceStepHandler, inputs: dict[str, Any], name: str) -> None:
    change, message = BAD[name]
    changed = inputs | change(inputs)
    failed(handler.get_lyric_timestamp(**changed), message)
    failed(handler.get_lyric_score(**changed), message)


def test_bad_length_is_a_line(handler: AceStepHandler, inputs: dict[str, Any]) -> None:
    failed(handler.get_lyric_timestamp(**(inputs | {"total_duration_seconds": -1.0})), "positive")


def test_empty_lyrics_are_a_line(handler: AceStepHandler) -> None:
    made = handler.condition_on_lyrics(NOISE, "")
    failed(handler.get_lyric_timestamp(**song_inputs(made)), "lyric text is empty")


def test_nothing_loaded(inputs: dict[str, Any]) -> None:
    failed(AceStepHandler().get_lyric_timestamp(**inputs), "no checkpoint is loaded")
    with pytest.raises(RequestError, match="no checkpoint is loaded"):
        AceStepHandler().condition_on_lyrics(torch.zeros(2, 48000), "la")


def test_checkpoint_without_a_table_needs_heads(base_handler: AceStepHandler) -> None:
    made = base_handler.condition_on_lyrics(NOISE, "la la")
    inputs = song_inputs(made)
    failed(base_handler.get_lyric_score(**inputs), "no table of lyric heads")
    assert base_handler.get_lyric_score(**inputs, custom_layers_config={1: [0]})["success"]


def test_out_of_memory_is_a_line(
    handler: AceStepHandler, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handler.pipeline is not None

    def fail(*positional: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(handler.pipeline.transformer, "forward", fail)
        patch.setattr(StepTransformer, "__call__", fail)
        failed(handler.get_lyric_score(**inputs), "ran out of memory")
        patch.setattr(codec, "encode", fail)
        with pytest.raises(Exception, match="ran out of memory"):
            handler.condition_on_lyrics(NOISE, "la")
        patch.undo()
        patch.setattr(torch, "softmax", fail)  # in the aligner, after the forward pass
        failed(handler.get_lyric_timestamp(**inputs), "ran out of memory")
    assert handler.get_lyric_score(**inputs)["success"]


def test_a_given_song_has_the_condition_of_a_made_one(
    handler: AceStepHandler, outputs: dict[str, Any], song: torch.Tensor
) -> None:
    assert handler.pipeline is not None
    song = song.repeat(1, 3)
    made = handler.condition_on_lyrics(song, LYRICS, caption="warm piano")
    assert torch.equal(made["encoder_hidden_states"], outputs["encoder_hidden_states"])
    assert torch.equal(made["context_latents"], outputs["context_latents"])
    assert made["lyric_token_ids"] == outputs["lyric_token_ids"]
    with torch.no_grad():
        expected = codec.encode(handler.pipeline.vae, song[None], handler.policy)
    assert torch.equal(made["latents"], expected.transpose(1, 2))
    assert made["duration"] == 6.0


@pytest.mark.parametrize("samples", [480, 48000 * 601])
def test_songs_too_short_or_too_long(handler: AceStepHandler, samples: int) -> None:
    silence = torch.zeros(1, 1).expand(2, samples)
    with pytest.raises(RequestError, match="out of range"):
        handler.condition_on_lyrics(silence, "la")


def test_energy_is_on_the_host_as_numpy(handler: AceStepHandler, inputs: dict[str, Any]) -> None:
    found = handler.get_lyric_timestamp(**inputs, return_matrices=True)
    assert isinstance(found["energy_matrix"], np.ndarray)

"""Tests of what the pipeline keeps between requests, and of what it drops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from acestep.device import DevicePolicy, resolve
from acestep.diffusion import prompts
from acestep.diffusion.prompts import lyric_ids, prompt_text, text_ids
from acestep.engines.recent import Recent
from acestep.engines.torch import prompt_encoder, wave_decoder, wave_encoder
from acestep.engines.torch.prompt_encoder import PromptEncoder
from acestep.handler import AceStepHandler
from acestep.song.request import Request
from acestep.vae.convolution import folded

REQUEST = Request("a harp nobody heard before", (1,), duration=0.6, steps=1)


@pytest.fixture
def encodings(handler: AceStepHandler, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captions that reach the text encoder, as they do."""
    seen: list[str] = []
    engine = handler.engine
    assert engine is not None
    encode = engine.encode_words

    def noted(text: Any, lyrics: Any) -> Any:
        seen.append(engine.tokenizer.decode(text).partition("# Caption\n")[2].partition("\n")[0])
        return encode(text, lyrics)

    monkeypatch.setattr(engine, "encode_words", noted)
    return seen


def test_a_prompt_is_encoded_once(
    handler: AceStepHandler, encodings: list[str], song: torch.Tensor
) -> None:
    first = handler.generate(REQUEST).tensors["encoder_hidden_states"]
    again = handler.generate(dataclasses.replace(REQUEST, seeds=(2,)))
    assert len(encodings) == 1
    assert torch.equal(first, again.tensors["encoder_hidden_states"])
    # Another language, or a timbre to follow, is another condition.
    handler.generate(dataclasses.replace(REQUEST, language="en"))
    heard = handler.generate(dataclasses.replace(REQUEST, reference_audio=song))
    assert len(encodings) == 3
    assert not torch.equal(heard.tensors["encoder_hidden_states"], first)


def test_encodings_kept_are_bounded(
    handler: AceStepHandler, encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handler.maker is not None
    monkeypatch.setattr(handler.maker.conditioner, "kept", Recent(2))
    for caption in ("one", "two", "three", "two", "one"):
        handler.generate(dataclasses.replace(REQUEST, caption=caption))
    assert encodings == ["one", "two", "three", "one"]


def test_forget_frees_what_was_made_of_the_weights(base_folder: Any) -> None:
    """With offloading the next song must read the weights where they are then."""
    handler = AceStepHandler()
    handler.load(str(base_folder), resolve("cpu"))
    loaded = handler.pipeline
    assert loaded is not None
    before = handler.generate(REQUEST).songs[0].audio
    assert loaded._denoiser is not None
    assert loaded.vae in wave_decoder._DECODERS
    wave_encoder.wave_encoder(loaded.vae, handler.policy)
    assert loaded.vae in wave_encoder._ENCODERS
    loaded.forget()
    assert loaded._denoiser is None
    assert loaded.vae not in wave_decoder._DECODERS
    assert loaded.vae not in wave_encoder._ENCODERS
    with torch.no_grad():
        loaded.transformer.layers[0].mlp.down_proj.weight.mul_(2)
        loaded.vae.decoder.conv2.weight_g.mul_(0.5)
    after = handler.generate(REQUEST).songs[0].audio
    assert not torch.allclose(before, after, atol=1e-4)


def test_the_tokens_are_those_of_diffusers(handler: AceStepHandler) -> None:
    """Also where a text is cut."""
    loaded = handler.pipeline
    assert loaded is not None
    seen: list[torch.Tensor] = []
    watch = loaded.text_encoder.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    for prompt, lyrics in (("a harp", "[verse]\nla la"), ("harp " * 400, "la la\n" * 1500)):
        with torch.no_grad():
            loaded.encode_prompt(
                prompt, lyrics, torch.device("cpu"), vocal_language="en", audio_duration=12.0,
                instruction="Fill the audio semantic mask based on the given conditions:",
                bpm=90, keyscale="C major", timesignature="4",
            )  # fmt: skip
        request = Request(prompt, (1,), lyrics, 12.0, 90, "C major", "4", "en")
        text = text_ids(loaded.tokenizer, prompt_text(request, "text2music", 12.0))
        words = lyric_ids(loaded.tokenizer, request)
        assert [text] == seen[-2].tolist()
        assert [words] == seen[-1].tolist()
    watch.remove()
    assert len(text) == prompts.MAX_TEXT_TOKENS
    assert len(words) == prompts.MAX_LYRIC_TOKENS


def test_recorded_prompts_are_encoded_as_they_are_alone(
    base_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA encodes a prompt of a length that comes up again: the host stands in."""
    handler = AceStepHandler()
    handler.load(str(base_folder), resolve("cpu"))
    loaded = handler.pipeline
    assert loaded is not None
    monkeypatch.setattr(DevicePolicy, "records", property(lambda self: True))
    monkeypatch.setattr(prompt_encoder, "MAX_RECORDINGS", 2)
    encoder = PromptEncoder(loaded.text_encoder, loaded.condition_encoder, handler.policy)
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for tokens, lyric_tokens in ((60, 7), (64, 128), (3, 1), (70, 40), (100, 50), (9, 300),
                                     (8, 310), (11, 90)):  # fmt: skip
            text = torch.randint(3, 900, (1, tokens), generator=random)
            lyrics = torch.randint(3, 900, (1, lyric_tokens), generator=random)
            plain = encoder._plain(text, lyrics)
            for made, wanted in zip(encoder(text, lyrics), plain, strict=True):
                assert made.shape == wanted.shape
                torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-5)
    assert list(encoder._recordings) == [(64, 384), (64, 128)]
    assert encoder.is_current(loaded.text_encoder, loaded.condition_encoder)
    loaded.text_encoder.norm.weight.data = loaded.text_encoder.norm.weight.data.clone()
    assert not encoder.is_current(loaded.text_encoder, loaded.condition_encoder)


def test_changed_weights_of_the_vae_are_noticed(base_folder: Any) -> None:
    handler = AceStepHandler()
    handler.load(str(base_folder), resolve("cpu"))
    loaded, latents = handler.pipeline, torch.zeros(1, 4, 6)
    assert loaded is not None
    decode = wave_decoder.wave_decoder(loaded.vae, handler.policy)
    assert wave_decoder.wave_decoder(loaded.vae, handler.policy) is decode
    with torch.no_grad():
        loaded.vae.decoder.conv2.weight_g.mul_(2)
        again = wave_decoder.wave_decoder(loaded.vae, handler.policy)
        assert again is not decode
        torch.testing.assert_close(again(latents), loaded.vae.decode(latents).sample)


@pytest.mark.parametrize("limit", [None, 5000])
@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_the_quick_encoder_equals_diffusers(
    diffusers_pipeline: Any, limit: int | None, channels_last: bool
) -> None:
    vae, audio = diffusers_pipeline.vae, 0.3 * torch.randn(2, 2, 12 * 1920)
    quick = wave_encoder.WaveEncoder(vae.encoder, limit, channels_last=channels_last)
    torch.testing.assert_close(quick(audio), vae.encoder(audio), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_changed_weights_of_the_encoder_are_noticed(base_folder: Any) -> None:
    handler = AceStepHandler()
    handler.load(str(base_folder), resolve("cpu"))
    loaded, audio = handler.pipeline, 0.3 * torch.randn(1, 2, 9600)
    assert loaded is not None
    encode = wave_encoder.wave_encoder(loaded.vae, handler.policy)
    assert wave_encoder.wave_encoder(loaded.vae, handler.policy) is encode
    loaded.vae.encoder.conv2.weight_g.mul_(2)
    again = wave_encoder.wave_encoder(loaded.vae, handler.policy)
    torch.testing.assert_close(again(audio), loaded.vae.encoder(audio))


@pytest.mark.parametrize("limit", [None, 5000])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_quick_decoder_equals_diffusers(
    diffusers_pipeline: Any,
    limit: int | None,
    channels_last: bool,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is compiled runs here as it is: the compiler itself would take a minute.
    monkeypatch.setattr(wave_decoder, "_compiled", lambda function: function)
    vae = diffusers_pipeline.vae
    channels = vae.config.decoder_input_channels
    latents = torch.randn(2, channels, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        quick = wave_decoder.WaveDecoder(
            vae.decoder, limit, channels_last=channels_last, compiled=compiled
        )
        made = quick(latents)
        torch.testing.assert_close(made, vae.decode(latents).sample, atol=2e-6, rtol=1e-5)
        plain = torch.nn.Conv1d(3, 4, 5)
        assert torch.equal(folded(plain), plain.weight)

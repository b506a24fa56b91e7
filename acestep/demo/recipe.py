"""The recipe of the built-in checkpoint: shapes, tokenizer and seeded weights."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from acestep.corrections.weight_norm import old_weight_norm
from acestep.demo import MODEL_VERSION

SEED = 1920


@dataclass(frozen=True)
class DemoShape:
    """The widths of a small checkpoint; ratios and structure are those of ACE-Step 1.5.

    Attributes:
        is_turbo: guidance-distilled (three tasks, no guidance) or a base model (six).
        latent: latent channels; the VAE's encoder is twice as wide, by construction.
        hidden: width of the diffusion transformer and the condition encoder.
        layers: blocks of the diffusion transformer.
        text_hidden: width of the text encoder.
        vocabulary: size of the tokenizer, special tokens included.
        condition_hidden: width of the condition encoder; None takes the transformer's.
        token_hidden: width of the audio tokenizer and its inverse; likewise.
        condition_layers: blocks of the lyric encoder, and of the timbre encoder.
        decoder_channels: of the VAE's decoder at the full sample rate.
        multiples: how much wider the VAE is after each of its five strides.
    """

    is_turbo: bool = True
    latent: int = 8
    hidden: int = 192
    layers: int = 6
    text_hidden: int = 128
    vocabulary: int = 1536
    condition_hidden: int | None = None
    token_hidden: int | None = None
    condition_layers: int = 2
    decoder_channels: int = 16
    multiples: tuple[int, ...] = (1, 2, 4, 4, 8)

    @property
    def attention(self) -> dict[str, Any]:
        """Attention settings of the transformer."""
        return _attention(self.hidden)

    @property
    def condition_attention(self) -> dict[str, Any]:
        """Attention settings of the condition encoder."""
        return _attention(self.condition_hidden or self.hidden)

    @property
    def token_attention(self) -> dict[str, Any]:
        """Attention settings of the audio tokenizer and its inverse."""
        return _attention(self.token_hidden or self.hidden)


BUILTIN = DemoShape(
    latent=32,
    vocabulary=1152,
    condition_hidden=128,
    token_hidden=64,
    condition_layers=1,
    decoder_channels=40,
    multiples=(1, 1, 2, 2, 4),
)
"""The shape of the trained built-in checkpoint: 7.9 million weights."""


def _attention(width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": width * 8 // 3,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "head_dim": 32,
    }


def build(folder: Path, shape: DemoShape | None = None, seed: int = SEED) -> None:
    """Write a checkpoint in diffusers layout.

    Args:
        folder: where to write; made if it does not exist.
        shape: the widths; by default the built-in checkpoint's.
        seed: every weight follows from it and from the weight's name.
    """
    pipeline = make_pipeline(shape or DemoShape(), seed)
    pipeline.save_pretrained(folder)


def make_pipeline(shape: DemoShape, seed: int = SEED, tokenizer: Any = None) -> Any:
    """A `diffusers.AceStepPipeline` of the given shape with seeded weights, float32, CPU."""
    from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
    from diffusers.models import AceStepTransformer1DModel, AutoencoderOobleck
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = tokenizer or make_tokenizer(shape.vocabulary)
    with old_weight_norm():
        vae = AutoencoderOobleck(
            encoder_hidden_size=2 * shape.latent,
            downsampling_ratios=[2, 4, 4, 6, 10],
            channel_multiples=list(shape.multiples),
            decoder_channels=shape.decoder_channels,
            decoder_input_channels=shape.latent,
            audio_channels=2,
            sampling_rate=48000,
        )
    modules: dict[str, torch.nn.Module] = {
        "vae": vae,
        "text_encoder": Qwen3Model(
            Qwen3Config(
                vocab_size=shape.vocabulary,
                hidden_size=shape.text_hidden,
                intermediate_size=2 * shape.text_hidden,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                max_position_embeddings=4096,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
            )
        ),
        "transformer": AceStepTransformer1DModel(
            **shape.attention,
            num_hidden_layers=shape.layers,
            in_channels=3 * shape.latent,
            audio_acoustic_hidden_dim=shape.latent,
            encoder_hidden_size=shape.condition_hidden,
            is_turbo=shape.is_turbo,
            model_version=f"{MODEL_VERSION} {'turbo' if shape.is_turbo else 'base'}",
        ),
        "condition_encoder": AceStepConditionEncoder(
            **shape.condition_attention,
            text_hidden_dim=shape.text_hidden,
            timbre_hidden_dim=shape.latent,
            num_lyric_encoder_hidden_layers=shape.condition_layers,
            num_timbre_encoder_hidden_layers=shape.condition_layers,
        ),
        "audio_tokenizer": AceStepAudioTokenizer(
            **shape.token_attention,
            audio_acoustic_hidden_dim=shape.latent,
            fsq_dim=shape.token_hidden or shape.hidden,
            num_attention_pooler_hidden_layers=1,
        ),
        "audio_token_detokenizer": AceStepAudioTokenDetokenizer(
            **shape.token_attention,
            audio_acoustic_hidden_dim=shape.latent,
            num_attention_pooler_hidden_layers=1,
        ),
    }
    for name, module in modules.items():
        seed_weights(module, seed, name)
        module.eval().requires_grad_(False)
    _set_silence(modules["condition_encoder"], vae)
    return AceStepPipeline(
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        **modules,
    )


def seed_weights(module: torch.nn.Module, seed: int, scope: str = "") -> None:
    """Fill every parameter from its own generator, so that order and library do not matter.

    Weights are drawn at unit gain, normalisation gains are 1 and biases 0: activations
    keep their size through the network and the output is finite and not silent.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            last = name.rpartition(".")[2]
            if last in ("bias", "alpha", "beta"):
                parameter.zero_()
            elif last == "weight_g":
                # Residual branches and the output are quiet, so that audio stays within
                # a few units and rounding is not blown up by the periodic activation.
                parameter.fill_(0.3 if name.endswith("conv2.weight_g") else 1.0)
            elif last == "weight" and parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                key = zlib.crc32(f"{seed}/{scope}.{name}".encode())
                generator = torch.Generator("cpu").manual_seed(key)
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
                scale = 1.0 if "embed_tokens.weight" in name else 1 / math.sqrt(fan_in)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def make_tokenizer(vocabulary: int, lines: Sequence[str] | None = None) -> Any:
    """A byte-level BPE tokenizer whose merges come from the prompt's own words.

    Args:
        vocabulary: its size, or less where the text has too few words.
        lines: the text; by default sentences over words that captions are made of.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus() if lines is None else lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0]
    )


def _corpus() -> list[str]:
    """Sentences in the prompt's format over the words that captions are made of."""
    instruments = [
        "piano",
        "guitar",
        "bass",
        "drums",
        "violin",
        "cello",
        "flute",
        "trumpet",
        "saxophone",
        "organ",
        "synth",
        "strings",
        "harp",
        "choir",
        "banjo",
        "mandolin",
        "marimba",
        "bells",
        "kalimba",
        "pad",
        "lead",
        "clarinet",
        "accordion",
    ]
    moods = [
        "warm",
        "dark",
        "bright",
        "calm",
        "sad",
        "happy",
        "dreamy",
        "energetic",
        "gentle",
        "aggressive",
        "nostalgic",
        "romantic",
        "epic",
        "mellow",
        "playful",
        "mysterious",
        "uplifting",
        "melancholic",
        "tense",
        "peaceful",
    ]
    genres = [
        "lo-fi",
        "jazz",
        "rock",
        "pop",
        "folk",
        "blues",
        "funk",
        "soul",
        "ambient",
        "techno",
        "house",
        "classical",
        "metal",
        "reggae",
        "country",
        "disco",
        "waltz",
        "samba",
        "bossa",
        "hip-hop",
        "orchestral",
        "cinematic",
        "electronic",
    ]
    lines = [
        f"# Instruction\nFill the audio semantic mask based on the given conditions:\n\n"
        f"# Caption\n{mood} {genre} with {instrument}, a slow song in the rain at night\n\n"
        f"# Metas\n- bpm: {60 + 5 * i}\n- timesignature: 4\n- keyscale: C major\n"
        f"- duration: {10 * (i + 1)} seconds\n<|endoftext|>\n"
        for i, (mood, genre, instrument) in enumerate(zip(moods, genres, instruments, strict=False))
    ]
    keys = [
        f"{note}{sign} {mode}"
        for note in "CDEFGAB"
        for sign in ("", "#", "b")
        for mode in ("major", "minor")
    ]
    lines += [f"- keyscale: {key}\n- bpm: N/A\n- timesignature: 3" for key in keys]
    lines += [
        "Repaint the mask area based on the given conditions:",
        "Generate audio semantic tokens based on the given conditions:",
        "Extract the VOCALS track from the audio:",
        "Generate the DRUMS track based on the audio context:",
        "Complete the input track with GUITAR | BASS:",
        "# Languages\nen\n\n# Lyric\n[verse]\nlove is the light of the morning\n[chorus]\n"
        "and we will sing along the river\n[bridge]\nla la la\n[outro]<|endoftext|>",
        "# Languages\nunknown\n\n# Lyric\n[Instrumental]<|endoftext|>",
    ]
    return lines + instruments + moods + genres


def _set_silence(condition_encoder: Any, vae: Any) -> None:
    """Store what the VAE makes of silence; away from the ends it is one constant frame."""
    with torch.no_grad():
        posterior = vae.encode(torch.zeros(1, 2, 48000)).latent_dist
        frame = posterior.mean[:, :, posterior.mean.shape[-1] // 2]
        silence = condition_encoder.silence_latent
        silence.copy_(frame[:, None, :].expand_as(silence))

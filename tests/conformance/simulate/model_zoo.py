"""Small, randomly initialised models of libraries, with inputs, for comparisons between devices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

Inputs = dict[str, torch.Tensor]
Case = tuple[torch.nn.Module, Inputs]

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


def _tokens() -> Inputs:
    return {"input_ids": torch.arange(12).reshape(2, 6)}


def bert() -> Case:
    """An encoder."""
    from transformers import BertConfig, BertForSequenceClassification

    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    labels = torch.tensor([0, 1])
    model = BertForSequenceClassification(BertConfig(**_TEXT))
    return model, {**_tokens(), "attention_mask": mask, "labels": labels}


def modernbert() -> Case:
    """An encoder with rotary positions and sliding windows."""
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(**_TEXT, local_attention=4, pad_token_id=0)
    return ModernBertModel(config), _tokens()


def gpt2() -> Case:
    """A decoder with learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, bos_token_id=1)
    return GPT2LMHeadModel(config), {**_tokens(), "labels": _tokens()["input_ids"]}


def qwen3() -> Case:
    """A decoder with grouped queries and normalised heads."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**_TEXT, num_key_value_heads=2, head_dim=8)
    return Qwen3ForCausalLM(config), {**_tokens(), "labels": _tokens()["input_ids"]}


def mixtral() -> Case:
    """A decoder with experts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        **_TEXT, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    return MixtralForCausalLM(config), _tokens()


def mamba() -> Case:
    """A state-space decoder."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4)
    return MambaForCausalLM(config), _tokens()


def t5() -> Case:
    """An encoder and a decoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, vocab_size=64)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config), {**_tokens(), "labels": _tokens()["input_ids"]}


def whisper() -> Case:
    """Audio in, text out."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        vocab_size=64,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    features = torch.randn(1, 8, 32)
    return WhisperForConditionalGeneration(config), {
        "input_features": features,
        "decoder_input_ids": torch.tensor([[1, 5, 6]]),
    }


def wav2vec2() -> Case:
    """An audio encoder."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        **_TEXT,
        conv_dim=[16, 16],
        conv_stride=[4, 2],
        conv_kernel=[8, 4],
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return Wav2Vec2Model(config), {"input_values": torch.randn(1, 400)}


def vit() -> Case:
    """A vision transformer."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**{**_TEXT, "image_size": 16, "patch_size": 8})
    return ViTForImageClassification(config), {
        "pixel_values": torch.randn(2, 3, 16, 16),
        "labels": torch.tensor([0, 1]),
    }


def resnet() -> Case:
    """A convolutional network."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return ResNetForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def clip() -> Case:
    """Text and vision together."""
    from transformers import CLIPConfig, CLIPModel

    text = {**_TEXT, "max_position_embeddings": 8, "eos_token_id": 11}
    vision = {**_TEXT, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    return model, {**_tokens(), "pixel_values": torch.randn(2, 3, 16, 16)}


def autoencoder_kl() -> Case:
    """An image autoencoder."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, **_blocks("Encoder"))
    return model, {"sample": torch.randn(1, 3, 16, 16)}


def _blocks(kind: str) -> dict[str, Any]:
    return {
        "down_block_types": (f"Down{kind}Block2D",) * 2,
        "up_block_types": (f"Up{kind.replace('En', 'De')}Block2D",) * 2,
    }


def oobleck() -> Case:
    """An audio autoencoder."""
    from diffusers import AutoencoderOobleck

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.* is deprecated", FutureWarning)
        model = AutoencoderOobleck(
            encoder_hidden_size=16,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=8,
            decoder_input_channels=8,
        )
    return model, {"sample": torch.randn(1, 2, 64)}


def unet() -> Case:
    """A UNet with cross attention."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    return model, {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 4, 16),
    }


def dit() -> Case:
    """A diffusion transformer."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return model, {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "class_labels": torch.tensor([1]),
    }


def flux() -> Case:
    """A diffusion transformer with joint attention and rotary positions."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 2, 2),
    )
    return model, {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 4, 16),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(4, 3),
    }


MODELS: dict[str, Callable[[], Case]] = {
    make.__name__: make
    for make in (
        bert,
        modernbert,
        gpt2,
        qwen3,
        mixtral,
        mamba,
        t5,
        whisper,
        wav2vec2,
        vit,
        resnet,
        clip,
        autoencoder_kl,
        oobleck,
        unet,
        dit,
        flux,
    )
}

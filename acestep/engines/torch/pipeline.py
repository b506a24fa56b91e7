"""A checkpoint's modules as diffusers' pipeline, with what the engine prepares of their weights."""

from __future__ import annotations

from collections.abc import Callable

from diffusers import AceStepPipeline

from acestep.device import DevicePolicy
from acestep.engines.torch import wave_decoder, wave_encoder
from acestep.engines.torch.denoiser import Denoiser
from acestep.engines.torch.prompt_encoder import PromptEncoder
from acestep.engines.torch.transformer import StepTransformer


class Pipeline(AceStepPipeline):  # type: ignore[misc]
    """`AceStepPipeline` that keeps quicker forms of its modules, made on first use."""

    compiles = False
    """Whether the transformer's layers and the VAE's decoder are compiled on first use."""

    _denoiser: Denoiser | None = None
    _prompts: PromptEncoder | None = None

    def steps(self, policy: DevicePolicy) -> Denoiser:
        """What runs the transformer's steps."""
        denoiser = self._denoiser
        if denoiser is None or not denoiser.model.is_current(self.transformer):
            model = StepTransformer(self.transformer)
            if self.compiles:
                model.compile(policy)
            self._denoiser = denoiser = Denoiser(model, policy)
        return denoiser

    def prompt_encoder(self, policy: DevicePolicy) -> PromptEncoder:
        """What runs the text encoder and the lyric encoder."""
        encoder, modules = self._prompts, (self.text_encoder, self.condition_encoder)
        if encoder is None or not encoder.is_current(*modules):
            self._prompts = encoder = PromptEncoder(*modules, policy)
        return encoder

    def forget(self) -> None:
        """Drop what was prepared from the modules' weights: they are about to move."""
        self._denoiser = self._prompts = None
        wave_decoder.forget(self.vae)
        wave_encoder.forget(self.vae)

    def wait_on_host(self, policy: DevicePolicy, which: str) -> Callable[[], None]:
        """Let modules wait on the host until they are called.

        Args:
            which: `none`, `dit` for the transformer alone, or `all`.

        Returns:
            what brings the transformer home after the diffusion.
        """
        if which == "all":
            # Each module that is called sends the one before it home.
            self.enable_model_cpu_offload(device=policy.device)
            return self.forget
        if which == "none":
            return lambda: None
        from accelerate import cpu_offload_with_hook

        _, hook = cpu_offload_with_hook(self.transformer, policy.device)
        hook.offload()

        def send_home() -> None:
            self.forget()
            hook.offload()

        return send_home

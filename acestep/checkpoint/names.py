"""Short names of published checkpoints, and where their files come from."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_REPOSITORY = "ACE-Step/Ace-Step1.5"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
VAE = "vae"


@dataclass(frozen=True)
class Source:
    """Where a short name's files come from on the Hugging Face Hub.

    Attributes:
        repository: the Hub id that holds the diffusion transformer.
        folder: the folder its files are kept in locally.
        inside: folder inside the repository that holds the transformer, or empty.
        original: original layout, which needs the default repository's VAE and text
            encoder beside it.
    """

    repository: str
    folder: str
    inside: str = ""
    original: bool = False


# Hub ids: the table of variants in diffusers' documentation of AceStepPipeline.
SOURCES = {
    "turbo": Source(DEFAULT_REPOSITORY, "acestep-v15-turbo", "acestep-v15-turbo", True),
    "base": Source("ACE-Step/acestep-v15-base", "acestep-v15-base", original=True),
    "sft": Source("ACE-Step/acestep-v15-sft", "acestep-v15-sft", original=True),
    "xl-turbo": Source("ACE-Step/acestep-v15-xl-turbo-diffusers", "acestep-v15-xl-turbo-diffusers"),
}

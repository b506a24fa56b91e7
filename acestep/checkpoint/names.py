"""Short names of published checkpoints, and where their files come from."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_REPOSITORY = "ACE-Step/Ace-Step1.5"
TEXT_ENCODER = "Qwen3-Embedding-0.6B"
VAE = "vae"

LAYOUTS = ("original", "diffusers")


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

    @property
    def layout(self) -> str:
        """`original` or `diffusers`."""
        return "original" if self.original else "diffusers"


def _original(name: str) -> Source:
    return Source(f"ACE-Step/acestep-v15-{name}", f"acestep-v15-{name}", original=True)


def _diffusers(name: str) -> Source:
    return Source(f"ACE-Step/acestep-v15-{name}-diffusers", f"acestep-v15-{name}-diffusers")


# Hub ids: the tables of variants in diffusers' documentation of AceStepPipeline and in
# DiffSynth-Studio's of ACE-Step; the XL ones (base, sft) from other public projects' files that name them.
SOURCES: dict[str, tuple[Source, ...]] = {
    "turbo": (Source(DEFAULT_REPOSITORY, "acestep-v15-turbo", "acestep-v15-turbo", True),),
    "base": (_original("base"),),
    "sft": (_original("sft"),),
    "xl-turbo": (_diffusers("xl-turbo"), _original("xl-turbo")),
    "xl-base": (_diffusers("xl-base"), _original("xl-base")),
    "xl-sft": (_diffusers("xl-sft"), _original("xl-sft")),
    "turbo-shift1": (_original("turbo-shift1"),),
    "turbo-shift3": (_original("turbo-shift3"),),
    "turbo-continuous": (_original("turbo-continuous"),),
}
"""By short name, the layout that is fetched by default first."""


def folders_of(name: str) -> list[str]:
    """Local folders and files that a short name stands for, the preferred first."""
    published = [source.folder for source in SOURCES[name]]
    # Converted by hand, a checkpoint goes by the same rule.
    folders = [*published, f"acestep-v15-{name}", f"acestep-v15-{name}-diffusers"]
    spelled = name.replace("-", "_")
    # As in ComfyUI's published files.
    files = [f"acestep_v1.5_{spelled}", f"acestep_v1.5_{spelled}_bf16"]
    files.append(f"ace_step_1.5_{spelled}_aio")
    return list(dict.fromkeys([*folders, *(f"{file}.safetensors" for file in files)]))


def short_name(folder: str) -> str | None:
    """The short name that a folder's name, as published, belongs to."""
    return next((name for name in SOURCES if folder in folders_of(name)), None)

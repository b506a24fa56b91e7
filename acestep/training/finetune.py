"""One fine-tuning run from start to end: checkpoint, data, training, and what is stored."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from acestep.checkpoint.adapters.making import add_adapter, save_adapter
from acestep.checkpoint.finding import find
from acestep.checkpoint.folders import cache_dir
from acestep.checkpoint.kinds import Checkpoint
from acestep.corrections.masks import lean_masks
from acestep.device import GIB, DevicePolicy
from acestep.errors import RequestError, TrainingError
from acestep.handler import AceStepHandler
from acestep.inference import GenerationConfig, GenerationParams, make_request
from acestep.training.configs import LORA_TARGETS, TrainingConfig
from acestep.training.data import Example, find_examples, prepare
from acestep.training.state import load_position
from acestep.training.trainer import Progress, Trainer

SAMPLE_SECONDS = 10.0

# Bytes a trained weight needs: itself, its gradient and AdamW's two moments, float32.
_PER_TRAINED = 16


def run(
    data: Path,
    model: str,
    output: Path,
    policy: DevicePolicy,
    config: TrainingConfig,
    on_clip: Callable[[int, int], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Path:
    """Train an adapter, or with rank 0 the whole transformer, and store it.

    Beside the output lies a folder of the same name and `.run` with the losses, samples and
    the state; running the same again continues from there.

    Args:
        data: see `data.find_examples`.
        model: which checkpoint, see `finding.find`.
        output: the adapter's file; with rank 0 the folder of a new checkpoint.
        policy: see `DevicePolicy.for_training`.
        config: the settings.
        on_clip: told (done, all) while the data is prepared.
        on_step: told of every step.

    Returns:
        The folder of the run.

    Raises:
        RequestError: the data or the checkpoint is not usable; nothing has been written.
        TrainingError: the loss is not finite, or memory does not suffice.
    """
    folder = output.with_name(output.name + ".run")
    check_output(output, folder, config)
    examples = find_examples(data)
    checkpoint = find(model)
    handler = AceStepHandler()
    handler.load(model, policy)
    pipeline: Any = handler.pipeline
    transformer = pipeline.transformer
    clips = prepare(
        examples, pipeline, policy, cache_dir() / "training", _identity(checkpoint), on_clip
    )
    if config.lora_rank:
        alpha = config.lora_alpha or float(config.lora_rank)
        add_adapter(transformer, config.lora_rank, alpha, LORA_TARGETS, config.seed)
    else:
        transformer.float().requires_grad_(True)
    check_memory(transformer, policy)
    lean_masks(transformer)
    trainer = Trainer(transformer, policy, config, masked=True)

    def sample(step: int) -> None:
        _sample(handler, config, examples[0], folder / "samples" / f"step-{step:06d}.flac")

    trainer.fit(clips, folder, on_step=on_step, on_sample=sample)
    if config.lora_rank:
        save_adapter(transformer, output)
    else:
        _save_checkpoint(pipeline, output)
    return folder


def check_output(output: Path, folder: Path, config: TrainingConfig) -> None:
    """Refuse, before any work is done, a result that could not be put there.

    Args:
        output: the adapter's file, or the folder of a new checkpoint.
        folder: of the run; what it has stored itself, it may replace.
        config: the settings.

    Raises:
        RequestError: something else is there, the place cannot be written to, or the run has
            more steps already.
    """
    place = output.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise RequestError(f"cannot write to {place}; choose another place with -o")
    before = load_position(folder / "state", config.plain())
    if before is not None and before[0] > config.steps:
        raise RequestError(
            f"{folder} has {before[0]} steps already; ask for more with --steps, or choose "
            "another output"
        )
    if not output.exists():
        return
    if config.lora_rank and output.is_dir():
        raise RequestError(f"{output} is a folder, and an adapter is a file; choose another name")
    if not config.lora_rank and not output.is_dir():
        raise RequestError(f"{output} is a file, and a checkpoint is a folder; choose another name")
    if before is None:
        raise RequestError(
            f"{output} exists, and no run of its own lies beside it; move it, or choose another "
            "name with -o"
        )


def _save_checkpoint(pipeline: Any, output: Path) -> None:
    """Store a checkpoint in diffusers' layout; that of an earlier end of the run makes room."""
    from diffusers import AceStepPipeline

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as work:
        made, before = Path(work) / "new", Path(work) / "old"
        # Under the name that every reader of the layout knows.
        AceStepPipeline(**pipeline.components).save_pretrained(made)
        if output.exists():
            output.rename(before)
        made.rename(output)


def check_memory(model: torch.nn.Module, policy: DevicePolicy) -> None:
    """Refuse to start where the weights' optimiser alone cannot fit.

    Raises:
        TrainingError: says how much is needed and free, and what to do.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed, free = trained * _PER_TRAINED / GIB, policy.free_memory
    if needed > free:
        raise TrainingError(
            f"training {trained / 1e6:.0f} million weights needs {needed:.1f} GiB beside the "
            f"model, and {policy.name} has {free:.1f} GiB free; use --lora with a lower rank"
        )


def _identity(checkpoint: Checkpoint) -> str:
    """Changes when the checkpoint's files do."""
    digest = hashlib.sha256()
    root = checkpoint.path
    if not root.exists():
        raise RequestError(f"{root}: the checkpoint is gone")
    for file in [root] if root.is_file() else sorted(root.rglob("*")):
        if file.suffix in (".safetensors", ".json", ".pt") and file.is_file():
            state = file.stat()
            name = file.relative_to(root).as_posix()
            digest.update(f"{name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()


def _sample(handler: AceStepHandler, config: TrainingConfig, first: Example, path: Path) -> None:
    """Generate a short song with the weights as they are now."""
    from acestep.song import audio_files

    pipeline: Any = handler.pipeline
    # Generation may rearrange the storage of weights under inference mode, where autograd
    # could not use it any more; training goes on with the storage it had.
    storage = [(p, p.data) for p in pipeline.transformer.parameters()]
    params = GenerationParams(
        caption=config.sample_prompt or first.caption, duration=SAMPLE_SECONDS, seed=config.seed
    )
    request = make_request(params, GenerationConfig(batch_size=1, use_random_seed=False))
    try:
        song = handler.generate(request).songs[0]
    finally:
        pipeline.forget()
        for parameter, data in storage:
            parameter.data = data
    path.parent.mkdir(parents=True, exist_ok=True)
    audio_files.write(path, song.audio, song.sample_rate)

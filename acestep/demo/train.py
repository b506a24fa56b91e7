"""Repeats the training of the built-in checkpoint: `python -m acestep.demo.train`.

Each phase is bounded by wall-clock time and leaves its weights in the output folder, so
that short leases of a GPU add up: a later call with the same folder goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from acestep.demo import autoencoder, diffusion, material
from acestep.demo.parts import load_parts, save_parts, start_pipeline
from acestep.demo.synth import Voices
from acestep.device import DevicePolicy, resolve


def main(argv: Sequence[str] | None = None) -> None:
    """Run the phases that are asked for, in order."""
    arguments = _parser().parse_args(argv)
    policy = resolve(arguments.device)
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    run = _Run(arguments, policy)
    if arguments.vae:
        run.train_vae(arguments.vae, decoder_only=False)
    if arguments.decoder:
        run.train_vae(arguments.decoder, decoder_only=True)
    if arguments.flow or arguments.distil:
        run.train_transformer()


class _Run:
    """The pipeline that is trained, and the record of its training."""

    def __init__(self, arguments: argparse.Namespace, policy: DevicePolicy) -> None:
        self.arguments, self.policy = arguments, policy
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.pipeline = start_pipeline(arguments.start)
        self.pipeline.tokenizer.backend_tokenizer.save(str(self.out / "tokenizer.json"))
        if arguments.start is not None:
            load_parts(self.pipeline, arguments.start)
        for module in self.pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.to(policy.device)
        if policy.is_accelerator:
            autoencoder.fuse_activations(self.pipeline.vae)
        self.started = time.perf_counter()

    def note(self, phase: str, row: dict[str, float]) -> None:
        total = time.perf_counter() - self.started
        line = {"phase": phase, "total": total, **row}
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(rounded) + "\n")
        print(json.dumps(rounded), flush=True)  # noqa: T201

    def train_vae(self, seconds: float, decoder_only: bool) -> None:
        phase = "decoder" if decoder_only else "vae"
        autoencoder.train(
            self.pipeline.vae,
            self.policy,
            seconds=seconds,
            songs=self.arguments.songs,
            batch=self.arguments.vae_batch,
            seed=self.arguments.seed,
            decoder_only=decoder_only,
            report=lambda row: self.note(phase, row),
        )
        self.pipeline.vae.eval().requires_grad_(False)
        save_parts(self.pipeline, self.out, ["vae"], torch.float32)

    def train_transformer(self) -> None:
        arguments, pipeline, policy = self.arguments, self.pipeline, self.policy
        pipeline.vae.eval().requires_grad_(False)
        frame = diffusion.silence_frame(pipeline.vae, policy.device)
        silence = pipeline.condition_encoder.silence_latent
        silence.copy_(frame.expand_as(silence))
        short, long = self._material()
        network = diffusion.Network(pipeline)
        for phase, seconds in (("flow", arguments.flow), ("distil", arguments.distil)):

            def report(row: dict[str, float], phase: str = phase) -> None:
                self.note(phase, row)

            if seconds:
                diffusion.train(
                    network,
                    short,
                    long,
                    policy,
                    seconds=seconds,
                    batch=arguments.batch,
                    rate=arguments.rate if phase == "flow" else arguments.rate / 5,
                    final=arguments.final,
                    seed=arguments.seed,
                    distil=phase == "distil",
                    covered=arguments.covered,
                    keep_codes=arguments.keep_codes,
                    report=report,
                )
                save_parts(pipeline, self.out, ["transformer", "conditioning"], torch.float32)

    def _material(self) -> tuple[material.Material, material.Material]:
        arguments, tokenizer = self.arguments, self.pipeline.tokenizer
        often = ("text2music", "cover") if arguments.covered > 0.2 else ("text2music",)
        voices = Voices(self.policy.device)
        made = []
        for count, seconds, lengths, seed in (
            (arguments.songs * 8, 10.24, (10.0,), 101),
            (arguments.songs // 2, 30.0, (5.0, 15.0, 20.0, 30.0), 102),
        ):
            pieces = material.songs(count, seconds, seed + 1000 * arguments.seed)
            latents = material.latents_of(pieces, voices, self.pipeline.vae, self.policy)
            self.note("latents", {"pieces": count, "std": float(latents.float().std())})
            made.append(material.Material(pieces, latents, tokenizer, lengths, 8, seed, often))
        return made[0], made[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the built-in checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and log")
    parser.add_argument("--start", type=Path, help="folder of an earlier call to go on from")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--vae", type=float, default=0, help="seconds for the whole VAE")
    parser.add_argument("--decoder", type=float, default=0, help="seconds for its decoder alone")
    parser.add_argument("--flow", type=float, default=0, help="seconds of flow matching")
    parser.add_argument("--distil", type=float, default=0, help="seconds of distillation")
    parser.add_argument(
        "--songs",
        type=int,
        default=1536,
        help="of ten seconds for the VAE; 8 times as many, and "
        "half as many of thirty, for the transformer",
    )
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--final", type=float, default=0.05, help="share of it left at the end")
    parser.add_argument(
        "--covered", type=float, default=diffusion.COVERED, help="share of steps that follow codes"
    )
    parser.add_argument(
        "--keep-codes", action="store_true", help="leave the audio codes as they are"
    )
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()

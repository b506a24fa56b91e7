"""What an adapter adds to one layer's weight: a product of factors, and perhaps a magnitude.

A weight `W` becomes `W + scale * delta`; with a magnitude `m` (DoRA) every row, or every
column, of that sum is brought to the length that `m` says.

Every kind has a `scale` (of the product, from alpha and rank), a `magnitude` (lengths of the rows
`[out, 1]` or of the columns `[1, in]`, or None), the `shape` (out, in) of the weights it fits, and
its `factors` by name, from which `dense` makes the unscaled product `[out, in]` and `apply` its
product with inputs `[..., in]`, without making it where that is dearer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """LoRA: `up @ down`.

    Attributes:
        down: `[rank, in]`.
        up: `[out, rank]`.
    """

    scale: float
    magnitude: torch.Tensor | None
    down: torch.Tensor
    up: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weights it fits."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]

    def factors(self) -> dict[str, torch.Tensor]:
        """The tensors it is made of, by name."""
        return {"down": self.down, "up": self.up}

    @staticmethod
    def dense(factors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The product `[out, in]`, unscaled."""
        return factors["up"] @ factors["down"]

    @staticmethod
    def apply(factors: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """The product times inputs `[..., in]`."""
        return inputs @ factors["down"].mT @ factors["up"].mT


@dataclass(frozen=True)
class Kronecker:
    """LoKr: the Kronecker product of two small matrices, `[a, b]` and `[c, d]`."""

    scale: float
    magnitude: torch.Tensor | None
    left: torch.Tensor
    right: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weights it fits."""
        (a, b), (c, d) = self.left.shape, self.right.shape
        return a * c, b * d

    def factors(self) -> dict[str, torch.Tensor]:
        """The tensors it is made of, by name."""
        return {"left": self.left, "right": self.right}

    @staticmethod
    def dense(factors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The product `[out, in]`, unscaled."""
        return torch.kron(factors["left"].contiguous(), factors["right"].contiguous())

    @staticmethod
    def apply(factors: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """The product times inputs `[..., in]`."""
        left, right = factors["left"], factors["right"]
        split = torch.unflatten(inputs, -1, (left.shape[1], right.shape[1]))
        return (left @ (split @ right.mT)).flatten(-2)


@dataclass(frozen=True)
class Hadamard:
    """LoHa: two low-rank products, multiplied element by element."""

    scale: float
    magnitude: torch.Tensor | None
    ups: tuple[torch.Tensor, torch.Tensor]
    downs: tuple[torch.Tensor, torch.Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weights it fits."""
        return self.ups[0].shape[0], self.downs[0].shape[1]

    def factors(self) -> dict[str, torch.Tensor]:
        """The tensors it is made of, by name."""
        return {
            "up_1": self.ups[0],
            "down_1": self.downs[0],
            "up_2": self.ups[1],
            "down_2": self.downs[1],
        }

    @staticmethod
    def dense(factors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The product `[out, in]`, unscaled."""
        return (factors["up_1"] @ factors["down_1"]) * (factors["up_2"] @ factors["down_2"])

    @staticmethod
    def apply(factors: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """The product times inputs `[..., in]`."""
        return inputs @ Hadamard.dense(factors).mT


Update = LowRank | Kronecker | Hadamard

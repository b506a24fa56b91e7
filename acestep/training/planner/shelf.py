"""The planner's material on the device: rows of like length together, and batches of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from acestep.training.planner.material import Row

IGNORED = -100
"""The label of a place from which nothing is learned."""

SHARES = {"codes": 0.5, "understand": 0.14, "written": 0.36}
"""How often a batch is of each family."""

_LENGTH_STEP, _ANSWER_STEP = 64, 32


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    Attributes:
        tokens: int64 `[rows, length]`, padded at the end with 0.
        at: int64 `[places]`, where in the flattened tokens something is predicted.
        labels: int64 `[places]`, the token that follows there, or `IGNORED`.
        coded: whether the labels are codes (and the end of a turn) or text.
    """

    tokens: torch.Tensor
    at: torch.Tensor
    labels: torch.Tensor
    coded: bool


@dataclass
class _Group:
    """Rows of one family, padded to one length.

    Attributes:
        tokens: int16 `[rows, length]`, codes left open as in `Row`.
        starts, ends: `[rows]`, the answers.
        bases: `[rows]`, where the row's codes begin among all.
        answer: most tokens of an answer.
    """

    tokens: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor
    bases: torch.Tensor
    answer: int


class Shelf:
    """All rows on one device.

    Args:
        codes: uint16 values `[pieces][codes]` of each piece.
        rows: their `piece` counts in `codes`.
        text: rows of the vocabulary before the codes.
        device: where.
        fewest: groups of fewer rows are left out: every shape of a step is recorded.
    """

    def __init__(
        self,
        codes: Sequence[np.ndarray],
        rows: Sequence[Row],
        text: int,
        device: torch.device,
        fewest: int = 1,
    ) -> None:
        self._text, self._device = text, device
        starts = np.cumsum([0, *(len(piece) for piece in codes)])
        self._codes = torch.from_numpy(np.concatenate(codes).astype(np.int32)).to(device)
        sorted_rows: dict[tuple[str, int, int], list[Row]] = defaultdict(list)
        for row in rows:
            sorted_rows[_shape(row)].append(row)
        self._groups: dict[str, list[_Group]] = defaultdict(list)
        for (family, length, answer), members in sorted(sorted_rows.items()):
            if len(members) >= fewest:
                group = _group(members, length, answer, starts, device)
                self._groups[family].append(group)

    @property
    def shapes(self) -> dict[str, int]:
        """How many groups there are of each family."""
        return {family: len(groups) for family, groups in self._groups.items()}

    def draw(
        self,
        host: np.random.Generator,
        random: torch.Generator,
        tokens: int,
        *,
        family: str | None = None,
        disturbed: float = 0.0,
    ) -> Batch:
        """Rows of one shape, each row as likely as any other of its family.

        Args:
            host: chooses the group.
            random: chooses rows, on the device.
            tokens: of the whole batch, padding included.
            family: one of `SHARES`; by default drawn by them.
            disturbed: share of codes replaced by others in what is read, not in what is to be
                written: at use the model reads its own mistakes.
        """
        if family is None:
            present = [name for name in SHARES if self._groups[name]]
            shares = np.array([SHARES[name] for name in present])
            family = str(host.choice(present, p=shares / shares.sum()))
        groups = self._groups[family]
        # A batch of long rows holds fewer of them.
        weights = np.array([group.tokens.numel() for group in groups], dtype=np.float64)
        group = groups[int(host.choice(len(groups), p=weights / weights.sum()))]
        count = max(1, tokens // group.tokens.shape[1])
        chosen = torch.randint(len(group.tokens), (count,), generator=random, device=self._device)
        return self._filled(group, chosen, random, family == "codes", disturbed)

    def _filled(
        self,
        group: _Group,
        chosen: torch.Tensor,
        random: torch.Generator,
        coded: bool,
        disturbed: float,
    ) -> Batch:
        rows = group.tokens[chosen].long()
        is_code = rows < 0
        places = torch.where(is_code, group.bases[chosen][:, None] - 1 - rows, 0)
        tokens = torch.where(is_code, self._text + self._codes[places].long(), rows)
        length = tokens.shape[1]
        steps = torch.arange(group.answer, device=self._device)
        ahead = group.starts[chosen][:, None] + steps
        labels = tokens.gather(1, ahead.clamp(max=length - 1))
        labels = labels.masked_fill(ahead >= group.ends[chosen][:, None], IGNORED)
        first = torch.arange(len(tokens), device=self._device)[:, None] * length
        at = first + (ahead - 1).clamp(max=length - 1)
        if disturbed:
            draw = torch.rand(tokens.shape, generator=random, device=self._device)
            other = torch.randint(
                len(self._codes), tokens.shape, generator=random, device=self._device
            )
            replaced = is_code & (draw < disturbed)
            tokens = torch.where(replaced, self._text + self._codes[other].long(), tokens)
        return Batch(tokens, at.flatten(), labels.flatten(), coded)


def _shape(row: Row) -> tuple[str, int, int]:
    """Family, length and length of answer that a row is padded to."""
    family = row.kind if row.kind in SHARES else "written"
    answer = len(row.tokens) - row.start
    step = 1 if family == "codes" and row.codes % 50 == 0 else _ANSWER_STEP
    return family, _up(len(row.tokens), _LENGTH_STEP), _up(answer, step)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _group(
    rows: Sequence[Row], length: int, answer: int, starts: np.ndarray, device: torch.device
) -> _Group:
    tokens = np.zeros((len(rows), length), np.int16)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row.tokens)] = row.tokens

    def numbers(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=device)

    return _Group(
        torch.from_numpy(tokens).to(device),
        numbers([row.start for row in rows]),
        numbers([len(row.tokens) for row in rows]),
        numbers([int(starts[row.piece]) if row.piece >= 0 else 0 for row in rows]),
        answer,
    )

"""Files of a checkpoint: JSON, which weights there are, and whether their bytes are whole."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.errors import CheckpointError, first_line

WEIGHT_INDEX = "model.safetensors.index.json"
STEMS = ("diffusion_pytorch_model", "model")
"""Names of a component's weights, without what follows the point."""
_MAX_HEADER = 100 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing file; the checkpoint is incomplete") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({first_line(error)})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def weight_files(folder: Path, stems: Sequence[str] = ("model",)) -> list[Path]:
    """The safetensors files of one module: a single file, or every shard of its index.

    Raises:
        CheckpointError: there are none, or a shard that the index names is missing.
    """
    for stem in stems:
        single = folder / f"{stem}.safetensors"
        if single.is_file():
            return [single]
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return list(_shards(index))
    names = " or ".join(f"{stem}.safetensors" for stem in stems)
    raise CheckpointError(f"{folder}: no weights here; expected {names} (or its index and shards)")


def most_stored(path: Path, stems: Sequence[str] = ("model",)) -> str:
    """The dtype, by safetensors' name, that most numbers of a module are stored in.

    Args:
        path: its file, or the folder of its files.
        stems: of their names, see `weight_files`.

    Returns:
        nothing where they cannot be read: what is wrong is told by who loads them.
    """
    sizes: Counter[str] = Counter()
    try:
        for file in [path] if path.is_file() else weight_files(path, stems):
            for entry in stored(file).values():
                sizes[entry.dtype] += math.prod(entry.shape)
    except (CheckpointError, OSError):
        return ""
    return sizes.most_common(1)[0][0] if sizes else ""


def _shards(index: Path) -> Iterator[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no 'weight_map' that names the shards")
    for name in sorted(set(weight_map.values())):
        shard = index.parent / str(name)
        if shard.parent != index.parent:
            raise CheckpointError(f"{index}: shard name '{name}' leads out of the folder")
        if not shard.is_file():
            raise CheckpointError(f"{shard}: missing; {index.name} names it as a shard")
        yield shard


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: its shape, and its dtype by the format's name."""

    shape: tuple[int, ...]
    dtype: str


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, after checking that all its bytes are there."""
    return {name: entry.shape for name, entry in stored(file).items()}


def stored(file: Path) -> dict[str, Stored]:
    """What a safetensors file holds, after checking that all its bytes are there.

    Layout: 8 bytes with the header's length, the header as JSON, then the tensors.

    Raises:
        CheckpointError: it is damaged, truncated, or no such file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(
                f"{file}: not a safetensors file, or truncated ({size} bytes); fetch it again"
            )
        try:
            read = json.loads(stream.read(length))
            entries = {k: v for k, v in read.items() if k != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            found = {
                key: Stored(tuple(entry["shape"]), str(entry["dtype"]))
                for key, entry in entries.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise CheckpointError(f"{file}: its header is damaged; fetch the file again") from None
    if size != 8 + length + end:
        raise CheckpointError(
            f"{file}: has {size} bytes, its header says {8 + length + end}; it is truncated "
            "or was changed: fetch the file again"
        )
    return found

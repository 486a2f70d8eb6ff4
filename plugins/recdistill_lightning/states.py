"""Hidden states of a teacher, compressed to a few bits per number, and their file.

A state is ``width`` numbers in [-1, 1], each one of ``2 ** bits - 1`` evenly spaced levels. The numbers are ordered so
that the first ones alone are a state, too (Matryoshka, arXiv 2205.13147): a narrower reader reads a prefix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill_core.errors import DataError, IntegrityError, UsageError
from recdistill_core.files import whole_or_absent

BITS = (2, 8)
_KEY = b"recdistill_states"


def require_shape(width: int, bits: int) -> None:
    """Raise ValueError unless a state can have ``width`` numbers of ``bits`` bits."""
    if width < 2 or width % 2:
        raise ValueError(f"width must be even and >= 2, got {width}")
    if not BITS[0] <= bits <= BITS[1]:
        raise ValueError(f"bits must lie in [{BITS[0]}, {BITS[1]}], got {bits}")


def prefixes(width: int) -> list[int]:
    """``[width, width / 2, ...]``, all of them 2 or more."""
    found = [width]
    while found[-1] // 2 >= 2:
        found.append(found[-1] // 2)
    return found


def largest_code(bits: int) -> int:
    """The code of the value 1; 0 has the code 0, and -1 its negative. There are ``2 ** bits - 1`` codes."""
    return (1 << (bits - 1)) - 1


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """``[M, width]`` codes, from ``-largest_code`` to ``largest_code`` -> ``[M, ceil(width * bits / 8)]`` bytes."""
    plain = (codes.astype(np.int16) + largest_code(bits)).astype(np.uint8)
    every = np.unpackbits(plain[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(every.reshape(*codes.shape[:-1], codes.shape[-1] * bits), axis=-1)


def unpack(packed: NDArray[np.uint8], width: int, bits: int) -> NDArray[np.int16]:
    """The first ``width`` codes ``[..., width]`` of what :func:`pack` gave."""
    plain = np.unpackbits(packed, axis=-1, count=width * bits).reshape(*packed.shape[:-1], width, bits)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int16)
    codes: NDArray[np.int16] = plain @ weights - np.int16(largest_code(bits))
    return codes


@dataclass(frozen=True)
class States:
    """Compressed hidden states of ``M`` examples.

    Attributes:
        example_id: ``[M]`` int64, each once.
        packed: ``[M, ceil(width * bits / 8)]`` bytes; see :func:`pack`.
        after_training: ``[M]`` bool: True for a state of the trained teacher, which was not trained on the example;
            False for one of the forward pass that preceded the update on it.
        width, bits: of a state. facts: where they come from, JSON-able; ``dataset`` is the dataset's snapshot.

    Raises:
        DataError: where the shapes disagree or an example is there twice. ValueError: for a width that is odd or bits
            outside [2, 8].
    """

    example_id: NDArray[np.int64]
    packed: NDArray[np.uint8]
    after_training: NDArray[np.bool_]
    width: int
    bits: int = 4
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_shape(self.width, self.bits)
        wanted = (len(self.example_id), -(-self.width * self.bits // 8))
        if self.packed.shape != wanted or self.after_training.shape != wanted[:1]:
            raise DataError(
                f"codes of shape {list(self.packed.shape)} do not hold {wanted[0]} states of {self.width} numbers of "
                f"{self.bits} bits",
                where="States",
                fix=f"give {list(wanted)} bytes",
            )
        if len(np.unique(self.example_id)) != wanted[0]:
            raise DataError("an example has two states", where="States", fix="give each example once")

    def __len__(self) -> int:
        return len(self.example_id)

    def values(self) -> NDArray[np.float32]:
        """``[M, width]`` in [-1, 1]."""
        return (unpack(self.packed, self.width, self.bits) / largest_code(self.bits)).astype(np.float32)

    def prefix(self, width: int) -> States:
        """The first ``width`` numbers of each state.

        Raises:
            UsageError: for more numbers than there are, or an odd number of them.
        """
        if width > self.width or width < 2 or width % 2:
            raise UsageError(
                f"states of {self.width} numbers were asked for the first {width}",
                where="width",
                fix=f"ask for an even number from 2 to {self.width}; the trained ones are "
                f"{', '.join(map(str, prefixes(self.width)))}",
            )
        count = -(-width * self.bits // 8)
        return replace(self, packed=np.ascontiguousarray(self.packed[:, :count]), width=width)


def joined(parts: Sequence[States]) -> States:
    """The states of all parts, with the facts of the first."""
    return replace(
        parts[0],
        example_id=np.concatenate([part.example_id for part in parts]),
        packed=np.concatenate([part.packed for part in parts]),
        after_training=np.concatenate([part.after_training for part in parts]),
    )


def write_states(states: States, path: Path) -> None:
    """Write a Parquet file, whole or not at all: ``example_id``, ``state`` (packed bytes), ``after_training``."""
    count, size = states.packed.shape
    buffer = pa.py_buffer(np.ascontiguousarray(states.packed))
    packed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), count, [None, buffer])
    columns = {"example_id": states.example_id, "state": packed, "after_training": states.after_training}
    facts = {"format": 1, "width": states.width, "bits": states.bits, "facts": dict(states.facts)}
    with whole_or_absent(path) as place:
        pq.write_table(pa.table(columns).replace_schema_metadata({_KEY: json.dumps(facts)}), place)


def read_states(path: Path, width: int | None = None) -> States:
    """Read what :func:`write_states` wrote.

    Args:
        path: the file. width: numbers of a state that are wanted, at most as many as are stored; None: all.

    Raises:
        IntegrityError: for an absent or damaged file. DataError: for a Parquet file of something else.
        UsageError: for a ``width`` that the states have not.
    """
    try:
        table = pq.read_table(path)
        noted = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise IntegrityError(
            f"the states cannot be read: {error}", where=str(path), fix="train the teacher again, or restore the file"
        ) from error
    if not isinstance(noted, dict) or noted.get("format") != 1:
        raise DataError(
            "this is no file of hidden states",
            where=str(path),
            fix="name states.parquet of a teacher's step, or what recdistill_lightning.write_states wrote",
        )
    size = -(-noted["width"] * noted["bits"] // 8)
    column = table["state"].combine_chunks()
    buffer = column.buffers()[1] if len(column) else b""
    packed = np.frombuffer(buffer, np.uint8)[column.offset * size :][: len(column) * size].reshape(-1, size)
    states = States(
        table["example_id"].to_numpy(),
        packed,
        table["after_training"].to_numpy(),
        noted["width"],
        noted["bits"],
        noted["facts"],
    )
    return states if width is None else states.prefix(width)

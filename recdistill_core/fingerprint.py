"""Digests that name weights, configurations and files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recdistill_core.ranks import whole


def digest(value: Any) -> str:
    """16 hex digits of a JSON-able value or dataclass; equal values give equal digests in every process.

    Raises:
        TypeError: for an object whose text is its address, such as a function.
    """
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=_stable).encode()).hexdigest()[:16]


def _stable(value: Any) -> Any:
    """What stands in for a value that JSON does not know; the same in every process."""
    if isinstance(value, set | frozenset):
        return sorted(str(entry) for entry in value)
    if re.search(r" at 0x[0-9a-f]+>", str(value)):
        raise TypeError(f"a {type(value).__name__} has no stable digest: its text is its address in memory")
    return str(value)


def module_fingerprint(module: nn.Module, config: Any, view: str) -> str:
    """32 hex digits of a module's weights, its configuration and the hash of the feature view it reads.

    Of a module that is sharded over processes every process must ask: the weights are gathered, one tensor at a time.
    """
    total = hashlib.sha256(f"{digest(config)}:{view}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        plain = whole(tensor).cpu().contiguous()
        total.update(f"{name}:{plain.dtype}:{tuple(plain.shape)}".encode())
        total.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def package_digest(module: str) -> str:
    """16 hex digits of the Python files of the top-level package, or single file, that ``module`` belongs to."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    roots = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    files = {path.relative_to(root).as_posix(): path for root in roots for path in root.rglob("*.py")}
    if spec and not roots and spec.origin:
        files = {Path(spec.origin).name: Path(spec.origin)}
    return digest({name: file_sha256(path) for name, path in sorted(files.items())})


def snapshot_digest(files: Mapping[str, str]) -> str:
    """32 hex digits of ``{relative path: sha256}``."""
    return hashlib.sha256(json.dumps(dict(sorted(files.items()))).encode()).hexdigest()[:32]

"""What ``recdistill doctor`` looks at."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
from typing import Any

from recdistill_core.component import RECDISTILL_API
from recdistill_core.registry import Registry

LIBRARIES = ("recdistill", "torch", "lightning", "torchmetrics", "transformers", "xformers", "omegaconf", "pyarrow")
OPTIONAL = {"xformers": "softmax attention falls back to the 'sdpa' and 'chunked' backends"}


def diagnose(registry: Registry) -> dict[str, Any]:
    """``{"ok": bool, "checks": [{"check", "state", "detail"}]}``; ``state`` is ``ok``, ``note`` or ``failed``."""
    checks = [_check("python", sys.version_info >= (3, 11), f"{platform.python_version()}, needs 3.11 or newer")]
    checks += [_library(name) for name in LIBRARIES]
    checks.append(_device())
    with tempfile.TemporaryFile() as scratch:
        checks.append(_check("temporary files", scratch.write(b"x") == 1, tempfile.gettempdir()))
    for plugin in registry.plugins:
        detail = f"{plugin.distribution} {plugin.version}, API {RECDISTILL_API}"
        checks.append(_check(f"plugin {plugin.name}", plugin.error is None, plugin.reason or detail))
    return {"ok": all(row["state"] != "failed" for row in checks), "checks": checks}


def _check(name: str, good: bool, detail: str) -> dict[str, str]:
    return {"check": name, "state": "ok" if good else "failed", "detail": detail}


def _library(name: str) -> dict[str, str]:
    try:
        return _check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        if name in OPTIONAL:
            return {"check": name, "state": "note", "detail": f"not installed: {OPTIONAL[name]}"}
        return _check(name, False, "not installed: pip install recdistill")


def _device() -> dict[str, str]:
    import torch

    if torch.cuda.is_available():
        return _check("accelerator", True, torch.cuda.get_device_name(0))
    return {"check": "accelerator", "state": "note", "detail": f"none; {torch.get_num_threads()} CPU threads"}

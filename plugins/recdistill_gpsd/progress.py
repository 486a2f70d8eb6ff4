"""Where a pre-training stands after each epoch, in one file beside the output, so that an interrupted one goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from recdistill_core.errors import UsageError
from recdistill_core.files import sync, usual_mode

KEY = "recdistill"


@dataclass(frozen=True)
class Epoch:
    """What one pass gave: ``{field: mean loss in nats per target}``, and rankings where they were asked for."""

    number: int
    loss: Mapping[str, float]
    ranking: Mapping[str, Any] | None


@dataclass(frozen=True)
class Progress:
    """A file with weights, AdamW's moments and the state of every generator.

    Attributes:
        path: of the file. job: digest of all that the result depends on; a file of another job is refused.
    """

    path: Path
    job: str

    def save(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, draws: torch.Generator, done: list[Epoch]
    ) -> None:
        """Replace the file by the state after the epochs ``done``; a crash leaves the earlier one."""
        tensors = {f"model/{name}": part for name, part in model.state_dict().items()}
        tensors |= {
            f"moment/{name}/{key}": value
            for name, part in model.named_parameters()
            for key, value in optimiser.state[part].items()
        }
        tensors |= {"random/draws": draws.get_state(), "random/cpu": torch.get_rng_state()}
        device = next(model.parameters()).device
        if device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(device)
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        notes = {"job": self.job, "epochs": [asdict(epoch) for epoch in done]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".tmp")
        safetensors.torch.save_file(plain, partial, metadata={KEY: json.dumps(notes)})
        usual_mode(partial)
        sync(partial)
        partial.replace(self.path)
        sync(self.path.parent)

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer, draws: torch.Generator) -> list[Epoch]:
        """Bring back what :meth:`save` wrote for this job; the epochs done, none where it wrote nothing.

        Raises:
            UsageError: if the file is of another job, whose epochs the first :meth:`save` of this one would destroy.
        """
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                notes = json.loads((file.metadata() or {}).get(KEY, "{}"))
                if notes.get("job") != self.job:
                    raise self._another(len(notes.get("epochs", [])))
                found: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, safetensors.SafetensorError):
            return []  # absent or damaged: nothing is lost but time
        model.load_state_dict(_under("model/", found))
        for name, part in model.named_parameters():
            moments = _under(f"moment/{name}/", found)
            optimiser.state[part] = {key: value.to(part.device) for key, value in moments.items()}
        draws.set_state(found["random/draws"])
        torch.set_rng_state(found["random/cpu"])
        if "random/cuda" in found:
            torch.cuda.set_rng_state(found["random/cuda"], next(model.parameters()).device)
        return [Epoch(**epoch) for epoch in notes["epochs"]]

    def _another(self, epochs: int) -> UsageError:
        return UsageError(
            "an interrupted pre-training with other settings, data, threads or code has left its progress here, after "
            f"epoch {epochs}",
            where=str(self.path),
            fix="give its own command to go on with it; or delete it, or give another --out",
        )

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

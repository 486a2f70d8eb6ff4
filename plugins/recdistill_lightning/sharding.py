"""Models cut over processes: FSDP2, layer by layer, through Lightning's ``ModelParallelStrategy``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from recdistill_core.files import whole_or_absent
from recdistill_core.interfaces import TrainableTeacher, outermost_lists
from recdistill_core.ranks import rank_and_world, whole
from recdistill_core.weights import save_weights
from recdistill_lightning.checkpoints import load_sharded, save_sharded

__all__ = ["FSDP2Strategy", "full_weights", "save_full_weights", "shard"]

#: Methods that run a model without being its ``forward``; the weights must be whole in them, too.
ENTRANCES = ("training_scores", "training_step", "scores")


class FSDP2Strategy(ModelParallelStrategy):
    """Every process holds a part of every weight, gradient and optimiser state, and a share of every batch.

    It is Lightning's ``ModelParallelStrategy`` with one mesh dimension in use, on the GPU (NCCL) or the CPU (gloo).

    Args:
        timeout: how long a process waits for the others at an exchange before it gives up.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(timeout=timeout)

    def setup_environment(self) -> None:
        """Start the process group; all processes shard one copy of the model between them."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder as :mod:`recdistill_lightning.checkpoints` says."""
        rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        save_sharded(Path(self.broadcast(filepath)), cast(nn.Module, self.model), self.optimizers, rest)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read such a folder, whatever the number of processes that wrote it; it never runs code of the file's."""
        return load_sharded(Path(self.broadcast(checkpoint_path)), cast(nn.Module, self.model), self.optimizers)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: :meth:`save_checkpoint` takes the state from the model."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing: :meth:`save_checkpoint` takes the state from the optimisers."""
        return {}


def shard_for(module: L.LightningModule, mesh: DeviceMesh) -> bool:
    """:func:`shard` a LightningModule once, in the precision of its Trainer: ``bf16-mixed`` gathers blocks in bf16.

    Returns:
        whether it was whole before.
    """
    if isinstance(module, FSDPModule):
        return False
    mixed = module.trainer.precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if mixed else None
    shard(module, mesh["data_parallel"], policy)
    return True


def hold_rows(parameter: nn.Parameter, free: Tensor) -> None:
    """Take the gradient off the rows of a sharded parameter where ``free`` is 0.

    Sharding replaces parameters, and with them their hooks; and FSDP2 sets gradients where autograd's hooks do not see.

    Args:
        parameter: ``[R, ...]``, after :func:`shard`. free: ``[R, 1, ...]`` of 0 and 1, the same in every process.
    """
    cut = cast(DTensor, parameter)
    mine = distribute_tensor(free.to(parameter.device), cut.device_mesh, cut.placements, src_data_rank=None)

    def mask(held: Tensor) -> None:
        if held.grad is not None:
            held.grad.mul_(mine)

    parameter.register_post_accumulate_grad_hook(mask)  # type: ignore[no-untyped-call]  # torch ships it without types


def shard(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy | None = None) -> None:
    """Cut the parameters of ``module`` over the processes of ``mesh``, in place.

    The weights are those of the first process. Each block of a teacher (see ``TrainableTeacher.blocks``) is gathered
    alone, just before it runs, in both passes; what lies outside of blocks (embeddings, heads) is gathered for the
    whole step, so run it through ``module``, not through a part of it.

    Args:
        module: a model, or a LightningModule that holds models.
        mesh: one dimension.
        policy: precision of the gathered weights and of the reduced gradients of blocks; None: as they are.
    """
    share_weights(module)
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())
    fully_shard(module, mesh=mesh)
    for name in ENTRANCES:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of every teacher in ``module``; without a teacher, the entries of its outermost module lists."""
    teachers = [part for part in module.modules() if isinstance(part, TrainableTeacher)]
    return [block for part in teachers for block in part.blocks()] if teachers else outermost_lists(module)


def share_weights(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers: without it each would keep a part of other weights."""
    if rank_and_world()[1] == 1:
        return
    tensors: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    for tensor in tensors:
        # a process group of GPUs takes no tensor of the CPU, where the model may be as yet
        device = torch.device("cuda") if distributed.get_backend() == "nccl" else tensor.device
        moved = tensor.detach().to(device)
        distributed.broadcast(moved, src=0)
        if moved.device != tensor.device:
            tensor.data.copy_(moved)


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, whole, on the CPU of the first process; an empty dict in the others. All must call it."""
    keep = rank_and_world()[0] == 0
    found = {}
    for name, tensor in module.state_dict().items():
        gathered = whole(tensor)
        if keep:
            found[name] = gathered.cpu().contiguous().clone()
    return found


def save_full_weights(module: nn.Module, path: Path) -> None:
    """Write the state of a module, sharded or not, as one safetensors file, as one process would. All must call it."""
    weights = full_weights(module)
    if rank_and_world()[0] == 0:
        with whole_or_absent(path) as scratch:
            save_weights(weights, scratch)
    if rank_and_world()[1] > 1:
        distributed.barrier()

"""Weights spread over processes (FSDP2), and back: a checkpoint and a model are whole whoever trained them.

Zhao et al., "PyTorch FSDP", arXiv:2304.11277. The learner's layers are gathered one at a time, all other weights
together while it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


def is_sharded(accelerator: Accelerator) -> bool:
    """Returns whether the launcher asks for FSDP; accelerate itself does not look at that on a processor."""
    from accelerate.utils import DistributedType, parse_flag_from_env

    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def shard(learner: nn.Module, accelerator: Accelerator) -> None:
    """Leaves each process with its share of every weight; layers are the modules that `_no_split_modules` names.

    A learner's method `write` counts as a forward pass: all other weights are whole while it runs.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = _mesh(accelerator)
    for module in _layers(learner):
        fully_shard(module, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    if hasattr(learner, "write"):
        register_fsdp_forward_method(learner, "write")


def shard_teacher(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """Leaves each process with its share of the layers of a model that is not trained.

    Its output layer, and a token table that shares its weight, stay whole: the losses read them after the pass.
    """
    from torch.distributed.fsdp import fully_shard

    mesh, head = _mesh(accelerator), model.get_output_embeddings()
    kept = set() if head is None else set(head.parameters())
    for module in [*_layers(model), model.base_model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Holds the layers of a sharded `module` whole on each process, so that passes inside need no other process."""
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def _mesh(accelerator: Accelerator) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def _layers(module: nn.Module) -> list[nn.Module]:
    names: set[str] = set(getattr(module, "_no_split_modules", None) or ())
    return [part for part in module.modules() if type(part).__name__ in names]


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor with all its parts; where it is spread over processes, all of them call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """Returns a whole `tensor`, the same on every process, spread as `model` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


def settle(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts whole `weights`, as a checkpoint names them, in the place of those that are spread; shared ones stay so."""
    own = module.state_dict(keep_vars=True)
    found = {id(own[name]): nn.Parameter(tensor) for name, tensor in weights.items()}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if id(parameter) in found:
                part._parameters[name] = found[id(parameter)]


def number_of(value: Tensor) -> float:
    """Returns a scalar that may be spread over processes."""
    return float(whole(torch.as_tensor(value)))

"""Several processes training one estimator: gradients are averaged, so all learn the same."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import warn

_TIMEOUT = timedelta(minutes=10)  # for a process that does not come; the others come together


class WeightedGradients(NamedTuple):
    """Gradients of one network, or other figures that processes average."""

    gradients: list[Tensor]
    weight: Tensor  # 0-d: how many samples they come from; 0 leaves them out


class Ranks:
    """The processes of a DistributedDataParallel estimator."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        # Our own: one that misses an update would else be taken to average the user's gradients.
        self.group = dist.new_group(
            dist.get_process_group_ranks(group), _TIMEOUT, use_local_synchronization=True
        )
        self.rank = dist.get_rank(group)

    @classmethod
    def of(cls, estimator: nn.Module) -> Ranks | None:
        """Those that train the estimator; None where it is not DDP's, or has one process."""
        wrapper = getattr(estimator, "_orig_mod", estimator)
        if not isinstance(wrapper, nn.parallel.DistributedDataParallel):
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                warn(
                    "PoseAugHook: several processes run, but the estimator is not in "
                    "DistributedDataParallel, so that every process trains a policy of its own. "
                    "Build the hook on the wrapped estimator."
                )
            return None
        group = wrapper.process_group
        return cls(group) if dist.get_world_size(group) > 1 else None

    @torch.no_grad()
    def broadcast(self, tensors: list[Tensor]) -> None:
        """Give every rank the tensors of the first."""
        for tensor in tensors:
            dist.broadcast(tensor, src=dist.get_global_rank(self.group, 0), group=self.group)

    @torch.no_grad()
    def average(
        self, parts: list[WeightedGradients], buffers: list[Tensor]
    ) -> list[WeightedGradients]:
        """Mean gradients, ranks weighted by their samples, in one flat all-reduce.

        What a single process would have for the joint batch, if its loss is a mean over samples.
        Every rank must call this, with the same networks in the same order. NaN on one is NaN on
        all, so that all leave the step out. Buffers are averaged in place, as the first part is.
        """
        given = [*parts, WeightedGradients(buffers, parts[0].weight)]
        tensors: list[Tensor] = []
        for gradients, weight in given:
            tensors += [*(torch.where(weight > 0, g * weight, 0.0) for g in gradients), weight]
        flat = torch.cat([t.reshape(-1).to(torch.float32) for t in tensors])
        try:
            dist.all_reduce(flat, group=self.group)
        except RuntimeError as problem:
            raise RuntimeError(
                "another process did not take part in this update. Each has to call hook.augment "
                "for every batch, with the hook on or paused in all of them"
            ) from problem
        summed = iter(flat.split([t.numel() for t in tensors]))
        averaged = []
        for gradients, _ in given:
            sums = [next(summed).view_as(g) for g in gradients]
            weight = next(summed).reshape(())
            means = [s / weight.clamp(min=1e-12) for s in sums]
            averaged.append(WeightedGradients(means, weight))
        means, weight = averaged.pop()
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(torch.where(weight > 0, mean, buffer))
        return averaged

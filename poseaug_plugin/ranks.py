"""Several processes training one estimator: what they learn is averaged, so all learn the same."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Lesson(NamedTuple):
    """What one network is to learn in an update."""

    gradients: list[Tensor]
    weight: Tensor  # 0-d: how many samples it comes from; 0 teaches nothing


class Ranks:
    """The processes of a DistributedDataParallel estimator.

    Args:
        group: Their process group.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @classmethod
    def of(cls, estimator: nn.Module) -> Ranks | None:
        """Those that train the estimator; None where it is not DDP's, or has one process."""
        wrapper = _data_parallel(estimator)
        if wrapper is None:
            return None
        ranks = cls(wrapper.process_group)
        return ranks if ranks.size > 1 else None

    @staticmethod
    def are_missed(estimator: nn.Module) -> bool:
        """Whether several processes run, and the estimator does not say that they train it."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return several and _data_parallel(estimator) is None

    @torch.no_grad()
    def same_start(self, module: nn.Module) -> None:
        """Give every rank the weights and buffers of the first."""
        state = [t for t in module.state_dict().values() if isinstance(t, Tensor) and t.numel()]
        for tensor in state:
            dist.broadcast(tensor, src=dist.get_global_rank(self.group, 0), group=self.group)

    @torch.no_grad()
    def average(self, lessons: list[Lesson], buffers: list[Tensor]) -> list[Lesson]:
        """Each network's mean gradient, ranks weighted by their samples, in one flat all-reduce.

        What a single process would have for the joint batch, as far as its loss is a mean over
        samples. A rank that has nothing to teach must call this too. NaN on one rank is NaN on all,
        so that all leave the step out.

        Args:
            lessons: The same networks in the same order on every rank.
            buffers: Floating-point buffers to be averaged as well, in place, weighted by the first
                lesson.
        """
        parts = []
        for lesson in lessons:
            teaches = lesson.weight > 0
            parts += [torch.where(teaches, g * lesson.weight, 0.0) for g in lesson.gradients]
            parts.append(lesson.weight)
        parts += [b * lessons[0].weight for b in buffers]
        flat = torch.cat([p.reshape(-1).to(torch.float32) for p in parts])
        dist.all_reduce(flat, group=self.group)
        summed = iter(flat.split([p.numel() for p in parts]))
        averaged = []
        for lesson in lessons:
            sums = [next(summed).view_as(g) for g in lesson.gradients]
            weight = next(summed).reshape(())
            averaged.append(Lesson([s / weight.clamp(min=1e-12) for s in sums], weight))
        taught = averaged[0].weight if averaged else None
        for buffer, total in zip(buffers, summed, strict=True):
            assert taught is not None
            mean = total.view_as(buffer) / taught.clamp(min=1e-12)
            buffer.copy_(torch.where(taught > 0, mean, buffer))
        return averaged


def _data_parallel(estimator: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    wrapper = getattr(estimator, "_orig_mod", estimator)
    return wrapper if isinstance(wrapper, nn.parallel.DistributedDataParallel) else None

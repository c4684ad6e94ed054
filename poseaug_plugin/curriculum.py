"""What changes on purpose while training goes on: target hardness and learning rate."""

from __future__ import annotations

from typing import NamedTuple


class Ramp(NamedTuple):
    """A value that goes linearly from ``start`` to ``end`` over the training."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        """The value at ``progress`` in [0, 1]."""
        return self.start + (self.end - self.start) * progress


def training_progress(num_updates: int, total_updates: int | None) -> float:
    """Share of the training that is done, in [0, 1]; 0 where its length is not known."""
    if not total_updates:
        return 0.0
    return min(num_updates / total_updates, 1.0)


def linear_decay(progress: float) -> float:
    """Learning-rate factor: 1 at the start, 0 at the end (the released LambdaLR)."""
    return 1.0 - progress

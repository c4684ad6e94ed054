"""Seeing what the estimator says to the augmented batch, in the user's own forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PredictionObserver:
    """Keeps the prediction that belongs to the tensors which `augment` returned last.

    The very memory that was returned, or a view of it, is certain; several passes with a part of it
    each (``inputs_2d.split(...)``) are put together. A copy (permuted, scattered, cast) can only be
    told by its size, and gives way to a certain one.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Wait for nothing."""
        self._awaited: Tensor | None = None
        self._certain: dict[int, Tensor] = {}  # by where in the awaited memory the input begins
        self._missing = 0  # coordinates of the awaited tensor without a certain prediction
        self._likely: Tensor | None = None

    def expect(self, inputs_2d: Tensor) -> None:
        """From now on look for the forward pass that takes ``inputs_2d``."""
        self.forget()
        self._awaited, self._missing = inputs_2d, inputs_2d.numel()

    def take(self, prediction: Tensor) -> None:
        """The user says what the prediction is."""
        self._certain, self._missing = {0: prediction.detach()}, 0

    @property
    def prediction(self) -> Tensor | None:
        """What the estimator said, as far as it was seen."""
        parts = [self._certain[begin] for begin in sorted(self._certain)]
        if len(parts) < 2:
            return parts[0] if parts else self._likely
        return torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else None

    def on_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:  # noqa: ANN401
        """Forward hook: look whether this was the awaited pass, or a part of it."""
        prediction = first_tensor(output)
        if prediction is None or self._awaited is None or not self._missing:
            return
        if not torch.is_grad_enabled():
            return
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        own = [x for x in given if _memory(x) == _memory(self._awaited)]
        if own:
            begin, size = int(own[0].storage_offset()), own[0].numel()
            if begin not in self._certain and size <= self._missing:
                self._certain[begin] = prediction.detach()
                self._missing -= size
        elif any(x.numel() == self._awaited.numel() for x in given):
            self._likely = prediction.detach()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def first_tensor(output: Any) -> Tensor | None:  # noqa: ANN401
    """The prediction out of a tensor, a sequence or a mapping; None where there is none."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None

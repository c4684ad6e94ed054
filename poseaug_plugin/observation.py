"""Seeing what the estimator says to the augmented batch, in the user's own forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PredictionObserver:
    """Keeps the prediction that belongs to the tensors which `augment` returned last.

    The very memory that was returned, or a view of it, is certain. A copy of it (permuted,
    scattered, cast) can only be told by its size, and gives way to a certain one.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Wait for nothing."""
        self._awaited: Tensor | None = None
        self.prediction: Tensor | None = None
        self._is_certain = False

    def expect(self, inputs_2d: Tensor) -> None:
        """From now on look for the forward pass that takes ``inputs_2d``."""
        self.forget()
        self._awaited = inputs_2d

    def take(self, prediction: Tensor) -> None:
        """The user says what the prediction is."""
        self.prediction, self._is_certain = prediction.detach(), True

    def on_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:  # noqa: ANN401
        """Forward hook: look whether this was the awaited pass."""
        if self._awaited is None or self._is_certain or not torch.is_grad_enabled():
            return
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        certain = any(_memory(x) == _memory(self._awaited) for x in given)
        if certain or any(x.numel() == self._awaited.numel() for x in given):
            prediction = first_tensor(output)
            if prediction is not None:
                self.prediction, self._is_certain = prediction.detach(), certain


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def first_tensor(output: Any) -> Tensor | None:  # noqa: ANN401
    """The prediction out of a tensor, a sequence or a mapping; None where there is none."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None

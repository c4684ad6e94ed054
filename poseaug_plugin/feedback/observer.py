"""`PredictionObserver`: reads the user's own forward pass on the augmented batch."""

from typing import Any

import torch
from torch import Tensor, nn


class PredictionObserver:
    """Keeps the prediction that belongs to the tensors which `augment` returned last.

    The very memory that was returned, or a view of it, is certain; passes with some rows each
    (``inputs_2d.split(...)``) are put together if they make up the batch. A copy (permuted,
    scattered, cast) can only be told by its size, and gives way to a certain one.
    """

    def __init__(self) -> None:
        self.expect(None)

    def expect(self, inputs_2d: Tensor | None) -> None:
        """From now on look for the forward pass that takes ``inputs_2d``; None for none."""
        self._awaited = inputs_2d
        self.certain: Tensor | None = None  # the user may say it, too
        self._likely: Tensor | None = None
        self._parts: dict[range, Tensor] = {}  # predictions by rows of the batch

    @property
    def prediction(self) -> Tensor | None:
        """The estimator's answer to the whole batch; None if that was not seen."""
        if self.certain is not None or not self._parts or self._awaited is None:
            return self._likely if self.certain is None else self.certain
        parts = [self._parts[rows] for rows in sorted(self._parts, key=lambda rows: rows.start)]
        is_whole = sum(map(len, self._parts)) >= self._awaited.shape[0]
        if not is_whole or len({part.shape[1:] for part in parts}) > 1:
            return None
        return torch.cat(parts)

    def on_forward(self, _: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        """Forward hook: look whether this was the awaited pass, or a part of it."""
        if self._awaited is None or self.certain is not None or not torch.is_grad_enabled():
            return
        prediction = first_tensor(output)
        if prediction is None or not prediction.dim() or _memory(prediction) is None:
            return
        prediction = prediction.detach()
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        own = next((x for x in given if _memory(x) == _memory(self._awaited)), None)
        if own is not None:
            rows = _rows_seen(own, self._awaited)
            if len(rows) == self._awaited.shape[0]:
                self.certain = prediction
            elif not any(set(rows) & set(other) for other in self._parts):
                self._parts[rows] = prediction
        elif any(x.numel() == self._awaited.numel() for x in given):
            self._likely = prediction


def _rows_seen(view: Tensor, whole: Tensor) -> range:
    """Which rows of a contiguous tensor a view of it shows; all, if it is no slice of rows."""
    size = whole.numel() // whole.shape[0]
    if not view.dim() or view.numel() >= whole.numel() or view.stride(0) != size:
        return range(whole.shape[0])
    first = int(view.storage_offset() - whole.storage_offset()) // size
    return range(first, first + view.shape[0])


def _memory(tensor: Tensor) -> int | None:
    """Where its values are; None where they are nowhere (sparse tensors, those of torch.func)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def first_tensor(output: Any) -> Tensor | None:
    """The prediction out of a tensor, a sequence or a mapping; None where there is none."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None

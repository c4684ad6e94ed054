"""Several small networks side by side as one batched matrix product."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """``groups`` independent linear layers: (B, groups, inputs) -> (B, groups, outputs).

    Each group starts like an `nn.Linear` of its own.
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(groups)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """Apply every group's layer to its own features.

        Args:
            x: (B, groups, inputs), or (B, groups, k) where all other inputs are zero.
            columns: (groups, k) which inputs those are.
        """
        weight: Tensor = self.weight
        if columns is not None:
            weight = weight.gather(2, columns.unsqueeze(1).expand(-1, weight.shape[1], -1))
        outputs = torch.baddbmm(self.bias.unsqueeze(1), x.transpose(0, 1), weight.transpose(1, 2))
        return outputs.transpose(0, 1)

"""Networks of one frame in the shapes of windows."""

from __future__ import annotations

from torch import Tensor, nn


class SingleFrame(nn.Module):
    """(B, 1, J, 2) in and (B, 1, J, 3) out, around a network of one frame.

    Args:
        network: Takes (B, J, 2) to (B, J, 3).
        flat: It takes (B, 2J) to (B, 3J) instead.
    """

    def __init__(self, network: nn.Module, *, flat: bool) -> None:
        super().__init__()
        self.network, self.flat = network, flat

    def forward(self, keypoints: Tensor) -> Tensor:
        """Lift."""
        single = keypoints[:, 0]
        lifted = self.network(single.flatten(1) if self.flat else single)
        return lifted.reshape(len(keypoints), 1, -1, 3)

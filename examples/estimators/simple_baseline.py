"""SimpleBaseline: one pose, by a residual network of linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from .common import check_shape


def _layer(inputs: int, width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)
    )


class Stage(nn.Module):
    """Two linear layers and a way around them (section 3.1, figure 1)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(_layer(width, width, dropout), _layer(width, width, dropout))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return features + self.layers(features)


class SimpleBaseline(nn.Module):
    """Residual network of Martinez et al., ICCV 2017 (section 3.1, figure 1).

    From "A simple yet effective baseline for 3d human pose estimation". Linear layers start from
    Kaiming's normal distribution. The limit that the paper puts on the weights' norm belongs into
    the training loop.

    Args:
        joints_in: Joints that come in; 16 is Human3.6M without the hip.
        joints_out: Joints that go out.
        width: Hidden width.
        stages: Residual stages, of two linear layers each.
        dropout: Probability of dropping a feature.
    """

    def __init__(
        self,
        joints_in: int = 16,
        joints_out: int = 16,
        *,
        width: int = 1024,
        stages: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.joints_in = joints_in
        self.layers = nn.Sequential(
            _layer(2 * joints_in, width, dropout),
            *(Stage(width, dropout) for _ in range(stages)),
            nn.Linear(width, 3 * joints_out),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Estimate.

        Args:
            keypoints: (B, 2 * joints_in), the joints' x and y in turn.

        Returns:
            (B, 3 * joints_out), the joints' x, y and z in turn.
        """
        check_shape(keypoints, ("B", 2 * self.joints_in))
        return self.layers(keypoints)

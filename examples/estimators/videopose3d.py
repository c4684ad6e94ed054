"""VideoPose3D: poses from long sequences, by dilated convolutions over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from .common import check_shape


class TemporalBlock(nn.Module):
    """A convolution over time, one on each frame, and a way around (section 3, figure 2).

    Nothing is padded: (B, channels, T) -> (B, channels, T'). The frame that goes around is the
    window's middle, or its last with ``causal``.
    """

    def __init__(
        self, channels: int, width: int, dilation: int, stride: int, causal: bool, dropout: float
    ) -> None:
        super().__init__()
        self.first_kept = (width - 1 if causal else width // 2) * dilation
        self.stride = stride
        self.layers = nn.Sequential(
            nn.Conv1d(channels, channels, width, stride=stride, dilation=dilation, bias=False),
            *_activation(channels, dropout),
            nn.Conv1d(channels, channels, 1, bias=False),
            *_activation(channels, dropout),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Convolve and add."""
        deeper = self.layers(features)
        kept = features[..., self.first_kept :: self.stride]
        return kept[..., : deeper.shape[-1]] + deeper


class TemporalModel(nn.Module):
    """Dilated temporal network of Pavllo et al., CVPR 2019 (section 3, figure 2).

    From "3D human pose estimation in video with temporal convolutions and semi-supervised
    training". Gives a pose for every window of ``receptive_field()`` frames: that of the window's
    middle frame, or with ``causal`` of its last. For a pose for every frame, pad by ``padding()``.

    Args:
        joints_in: Joints that come in.
        joints_out: Joints that go out.
        filter_widths: Odd widths of the convolutions; the receptive field is their product: three
            to five times 3 make 27, 81 and 243 frames.
        causal: Whether a pose may use past frames only.
        channels: Hidden width.
        dropout: Probability of dropping a feature.
        momentum: Momentum of the batch normalisation.

    Raises:
        ValueError: ``filter_widths`` are empty, or one is even or less than one.
    """

    strided = False

    def __init__(
        self,
        joints_in: int = 17,
        joints_out: int = 17,
        *,
        filter_widths: Sequence[int] = (3, 3, 3, 3, 3),
        causal: bool = False,
        channels: int = 1024,
        dropout: float = 0.25,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if not filter_widths or any(width < 1 or width % 2 == 0 for width in filter_widths):
            raise ValueError(
                f"filter_widths: expected odd numbers from 1 on, received {tuple(filter_widths)}."
            )
        self.joints_in, self.joints_out = joints_in, joints_out
        self.filter_widths, self.causal = tuple(filter_widths), causal
        first, *others = filter_widths
        stride = first if self.strided else 1
        self.expand = nn.Sequential(
            nn.Conv1d(2 * joints_in, channels, first, stride=stride, bias=False),
            *_activation(channels, dropout),
        )
        blocks = []
        for done, width in enumerate(others, start=1):
            dilation, stride = math.prod(filter_widths[:done]), 1
            if self.strided:
                dilation, stride = 1, width
            blocks.append(TemporalBlock(channels, width, dilation, stride, causal, dropout))
        self.blocks = nn.Sequential(*blocks)
        self.shrink = nn.Conv1d(channels, 3 * joints_out, 1)
        self.set_momentum(momentum)

    def receptive_field(self) -> int:
        """Frames that one pose is made from, R."""
        return math.prod(self.filter_widths)

    def padding(self) -> tuple[int, int]:
        """Frames to add before and after a sequence, so that as many come out as were in it."""
        around = self.receptive_field() - 1
        return (around, 0) if self.causal else (around // 2, around // 2)

    def set_momentum(self, momentum: float) -> None:
        """Set the batch normalisation's momentum; the paper lets it fall during training."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = momentum

    def forward(self, keypoints: Tensor) -> Tensor:
        """Estimate: (B, T, joints_in, 2) -> (B, T - R + 1, joints_out, 3)."""
        check_shape(keypoints, ("B", "T", self.joints_in, 2))
        if keypoints.shape[1] < self.receptive_field():
            raise ValueError(
                f"keypoints: expected at least {self.receptive_field()} frames, "
                f"received {keypoints.shape[1]}."
            )
        return self._estimate(keypoints)

    def _estimate(self, keypoints: Tensor) -> Tensor:
        features = self.expand(rearrange(keypoints, "b t j c -> b (j c) t"))
        joints = self.shrink(self.blocks(features))
        return rearrange(joints, "b (j c) t -> b t j c", j=self.joints_out)


class StridedTemporalModel(TemporalModel):
    """`TemporalModel` for training on windows of one receptive field (the paper's appendix).

    Strides take the place of dilations, so nothing is computed that one frame does not need. The
    arguments, the weights and the ``state_dict`` are those of `TemporalModel`.
    """

    strided = True

    def forward(self, keypoints: Tensor) -> Tensor:
        """Estimate: (B, R, joints_in, 2) -> (B, 1, joints_out, 3)."""
        check_shape(keypoints, ("B", self.receptive_field(), self.joints_in, 2))
        return self._estimate(keypoints)


def _activation(channels: int, dropout: float) -> tuple[nn.Module, ...]:
    return nn.BatchNorm1d(channels), nn.ReLU(), nn.Dropout(dropout)

"""A small transformer over joints and over frames, for trying out whole windows."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from .common import check_shape


class SpatioTemporalTransformer(nn.Module):
    """Attention over the joints of a frame, then over the frames of a joint, and again.

    In the manner of MixSTE (Zhang et al., CVPR 2022) and MotionBERT (Zhu et al., ICCV 2023), far
    smaller: it estimates every frame of a window.

    Args:
        joints: Joints that come in and go out.
        frames: Frames that come in, T.
        width: Features of a joint.
        blocks: Pairs of a spatial and a temporal layer.
        heads: Of the attention.
        causal: Whether a frame may look at past frames only.
        dropout: Probability of dropping a feature.
    """

    def __init__(
        self,
        joints: int = 17,
        frames: int = 27,
        *,
        width: int = 64,
        blocks: int = 2,
        heads: int = 4,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.joints, self.frames = joints, frames
        self.embed = nn.Linear(2, width)
        self.which_joint = nn.Parameter(0.02 * torch.randn(joints, width))
        self.which_frame = nn.Parameter(0.02 * torch.randn(frames, 1, width))

        def layer() -> nn.Module:
            return nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout, activation="gelu", batch_first=True
            )

        self.spatial = nn.ModuleList([layer() for _ in range(blocks)])
        self.temporal = nn.ModuleList([layer() for _ in range(blocks)])
        self.to_joints = nn.Linear(width, 3)
        future = torch.ones(frames, frames, dtype=torch.bool).triu(1) if causal else None
        self.register_buffer("future", future, persistent=False)

    def forward(self, keypoints: Tensor) -> Tensor:
        """Estimate: (B, T, J, 2) -> (B, T, J, 3)."""
        check_shape(keypoints, ("B", self.frames, self.joints, 2))
        features = self.embed(keypoints) + self.which_joint + self.which_frame
        batch = len(keypoints)
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            features = spatial(rearrange(features, "b t j c -> (b t) j c"))
            features = rearrange(features, "(b t) j c -> (b j) t c", b=batch)
            features = temporal(features, src_mask=self.future)
            features = rearrange(features, "(b j) t c -> b t j c", b=batch)
        return self.to_joints(features)

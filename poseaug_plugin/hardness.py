"""How hard is a pose for the estimator? A predictor that learns it by watching."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .rigid import root_relative
from .skeleton import Skeleton, find_skeleton


class HardnessPredictor(nn.Module):
    """Log of the estimator's error from a pose, its picture and its place.

    A loss-prediction module (Yoo & Kweon, CVPR 2019) that is trained on the errors of the user's
    own forward pass, so that feedback needs no pass of ours through the estimator.

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        width: Hidden width.
    """

    def __init__(self, skeleton: Skeleton | str, *, width: int = 256) -> None:
        super().__init__()
        self.skeleton = skeleton = find_skeleton(skeleton)
        self.layer_1 = nn.Linear(5 * skeleton.num_joints + 3, width)
        self.layer_2 = nn.Linear(width, width)
        self.output = nn.Linear(width, 1)

    def forward(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        """Predicted log error.

        Args:
            keypoints: (B, J, 2) normalised screen coordinates.
            joints: (B, J, 3) camera-space metres.

        Returns:
            (B,) natural log of the mean joint error in metres.
        """
        root = joints[:, self.skeleton.root]
        pose = root_relative(joints, self.skeleton).flatten(1)
        features = torch.cat([keypoints.flatten(1), pose, root], 1)
        for layer in (self.layer_1, self.layer_2):
            features = nn.functional.leaky_relu(layer(features))
        return self.output(features).squeeze(1)


def hardest_candidate(scores: Tensor, usable: Tensor) -> Tensor:
    """Index (B,) of the highest of (B, candidates) scores among the usable; 0 where none is."""
    return scores.masked_fill(~usable, -torch.inf).argmax(1)

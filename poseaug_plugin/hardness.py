"""How hard is a pose for the estimator? A predictor that learns it by watching."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .rigid import root_relative
from .skeleton import Skeleton
from .skeletons import find_skeleton
from .windows import displacements, middle_frame, num_displacements


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
        # Zero, so that it draws no random numbers and a window starts as its middle frame does.
        motion = torch.zeros(width, num_displacements(skeleton.num_joints, 2))
        self.motion = nn.Parameter(motion)

    def forward(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        """Predicted log error.

        Args:
            keypoints: (B, T, J, 2) normalised screen coordinates, all that the estimator sees.
            joints: (B, J, 3) camera-space metres, in the frame that is to be lifted.

        Returns:
            (B,) natural log of the mean joint error in metres.
        """
        root = joints[:, self.skeleton.root]
        pose = root_relative(joints, self.skeleton).flatten(1)
        frames = keypoints.shape[1]
        seen = keypoints[:, middle_frame(frames)].flatten(1)
        features = self.layer_1(torch.cat([seen, pose, root], 1))
        if frames > 1:
            features = features + displacements(keypoints) @ self.motion.T
        features = nn.functional.leaky_relu(features)
        return self.output(nn.functional.leaky_relu(self.layer_2(features))).squeeze(1)

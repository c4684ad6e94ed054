"""How hard is a pose for the estimator? A predictor that learns it by watching."""

from __future__ import annotations

import math

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


def choose_candidate(scores: Tensor, usable: Tensor, exponent: Tensor, draws: Tensor) -> Tensor:
    """Pick one candidate per pose with probability proportional to error ** exponent.

    Exponent 0 picks at random, a large one the hardest, a negative one prefers the easy.

    Args:
        scores: (B, candidates) log of the predicted error.
        usable: (B, candidates) bool; others are never picked, unless none is (then the first is).
        exponent: 0-d.
        draws: (B, candidates) uniform in [0, 1).

    Returns:
        (B,) index.
    """
    gumbel = -(-draws.clamp(1e-7, 1 - 1e-7).log()).log()
    return (exponent * scores + gumbel).masked_fill(~usable, -torch.inf).argmax(1)


class HardnessController(nn.Module):
    """Finds the exponent of `choose_candidate` that makes poses as hard as they should be.

    An integral controller: the exponent rises while the estimator's error on augmented poses is
    less than ``target`` times that on original ones, and falls while it is more. A narrow base gets
    a high exponent, a wide one a low or negative one, without being told which it is.
    """

    RATE = 0.05
    LIMIT = 10.0

    exponent: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("exponent", torch.zeros(()))

    @torch.no_grad()
    def update(self, observed_ratio: Tensor, target: float) -> None:
        """Take one batch's ratio of mean errors; one that is not finite changes nothing."""
        shortfall = math.log(target) - observed_ratio.clamp(min=1e-3).log()
        step = torch.where(shortfall.isfinite(), shortfall, torch.zeros_like(shortfall))
        self.exponent += self.RATE * step.clamp(-1, 1)
        self.exponent.clamp_(-self.LIMIT, self.LIMIT)

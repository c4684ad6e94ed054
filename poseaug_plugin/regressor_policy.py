"""`RegressorPolicy`: PoseAug's augmentor as its code and paper have it."""

from __future__ import annotations

import torch
from torch import Tensor

from .augmentation import AugmentationParameters, identity_parameters
from .bones import per_bone
from .policy import (
    OPERATIONS,
    Operation,
    Policy,
    check_operations,
    free_bones,
    free_lengths,
)
from .regressors import RawParameters, RegressorNetwork
from .rigid import axis_angle_to_matrix, root_relative
from .skeleton import Skeleton
from .skeletons import find_skeleton
from .windows import middle_frame

_LENGTH_LIMIT = 0.2
_ROTATION_LIMIT = 3.1415


class RegressorPolicy(Policy):
    """The pose augmentor of PoseAug (section 3.2), for any skeleton, by the released formulas.

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        operations: Which of ``bone_angle``, ``bone_length`` and ``rigid`` to do.
        fixed_trunk: Keep the bones between the root and the limbs' attachments unbent, and the
            anchor length unchanged, as the released code does.
        shared_extractor: One feature extractor for all regressors, as the paper has it, instead of
            four networks, as the released code does.
        width: Hidden width.

    Shape:
        joints (B, T, J, 3), noise (B, noise_size) -> `AugmentationParameters`. The networks see the
        root-relative pose of the window's middle frame.
    """

    free_bones: Tensor
    free_lengths: Tensor

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        operations: tuple[Operation, ...] = OPERATIONS,
        fixed_trunk: bool = False,
        shared_extractor: bool = False,
        width: int = 256,
    ) -> None:
        super().__init__()
        self.skeleton = find_skeleton(skeleton)
        self.operations = check_operations(operations)
        branches = 1 if shared_extractor else 4
        self.network = RegressorNetwork(self.skeleton, branches, width)
        self.noise_size = self.network.noise_size
        self.register_buffer("free_bones", free_bones(self.skeleton, fixed_trunk), persistent=False)
        self.register_buffer(
            "free_lengths", free_lengths(self.skeleton, fixed_trunk), persistent=False
        )

    def regress(self, joints: Tensor, noise: Tensor) -> RawParameters:
        """Run the networks on the middle frame of (B, T, J, 3)."""
        middle = root_relative(joints[:, middle_frame(joints.shape[1])], self.skeleton)
        return self.network(middle, noise)

    def bound(self, joints: Tensor, raw: RawParameters) -> AugmentationParameters:
        """The parameters that the networks' outputs mean."""
        offset, ratio, rotation, translation, focal_ratio = identity_parameters(
            joints, self.skeleton
        )
        if "bone_angle" in self.operations:
            offset = raw.bone_angle.unsqueeze(1) * self.free_bones
        if "bone_length" in self.operations:
            ratios = _LENGTH_LIMIT * (raw.bone_length * self.free_lengths).tanh()
            ratio = per_bone(ratios, self.skeleton).unsqueeze(1)
        if "rigid" in self.operations:
            rotation = axis_angle_to_matrix(_ROTATION_LIMIT * raw.rotation.tanh()).unsqueeze(1)
            place = torch.cat([raw.translation[:, :2], raw.translation[:, 2:].square()], 1)
            translation = place.unsqueeze(1)
        return AugmentationParameters(offset, ratio, rotation, translation, focal_ratio)

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        """Regress the parameters, and bound them."""
        return self.bound(joints, self.regress(joints, noise))

"""Joints to bone vectors and back; directions and lengths."""

from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .skeleton import Skeleton

SHORTEST_BONE = 1e-6
"""Metres. Below it a bone has no direction: its unit vector and gradients are 0, never NaN."""


class SkeletonTables(NamedTuple):
    """A skeleton as tensors."""

    parents: Tensor  # (bones,) joint indices
    children: Tensor  # (bones,) joint indices
    groups: Tensor  # (bones,) length group of each bone
    bones_to_joints: Tensor  # (3 * bones, 3 * J) minus each joint's path to the root
    pooling: Tensor  # (groups, bones) averages a left and its right bone
    is_not_root: Tensor  # (J, 1) 0 at the root joint, 1 elsewhere


# Kept for good: no step builds tensors on the host, and a CUDA graph reads them where they are.
@cache
def skeleton_tables(skeleton: Skeleton, device: torch.device, dtype: torch.dtype) -> SkeletonTables:
    """A skeleton's tables on a device."""
    # Tables first asked for under inference_mode must still be usable by autograd later.
    with torch.inference_mode(False):
        joints, bones = range(skeleton.num_joints), range(skeleton.num_bones)
        groups, all_groups = skeleton.bone_length_groups, range(skeleton.num_bone_length_groups)
        paths = [skeleton.bones_to_root(joint) for joint in joints]
        indices = skeleton.bone_parents, skeleton.bone_children, groups
        bones_xyz, paths_xyz = product(bones, range(3)), [*product(paths, range(3))]
        factors = (
            [[-float(i == j and b in path) for path, j in paths_xyz] for b, i in bones_xyz],
            [[(own == group) / groups.count(group) for own in groups] for group in all_groups],
            [[float(joint != skeleton.root)] for joint in joints],
        )
        return SkeletonTables(
            *(torch.tensor(table, device=device) for table in indices),
            *(torch.tensor(table, device=device, dtype=dtype) for table in factors),
        )


def joints_to_bones(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Bone vectors ``parent - child`` (..., J - 1, 3) of joints (..., J, 3), in any unit and frame.

    The paper's B = XC (section 3.2), in the direction of the reference code.
    """
    tables = skeleton_tables(skeleton, joints.device, joints.dtype)
    return joints.index_select(-2, tables.parents) - joints.index_select(-2, tables.children)


def bones_to_joints(bones: Tensor, skeleton: Skeleton, root: Tensor | None = None) -> Tensor:
    """Joints (..., J, 3) from bone vectors, the inverse of `joints_to_bones` (the paper's H^-1).

    ``root`` (..., 3) is the position of the root joint, by default the origin.
    """
    table = skeleton_tables(skeleton, bones.device, bones.dtype).bones_to_joints
    # One product of matrices: a batch of small ones takes several times as long.
    joints = (bones.reshape(-1, len(table)) @ table).view(*bones.shape[:-2], skeleton.num_joints, 3)
    return joints if root is None else joints + root.unsqueeze(-2)


def root_relative(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Joints (..., J, 3) with the root joint at the origin."""
    return joints - joints[..., skeleton.root : skeleton.root + 1, :]


def bone_lengths(bones: Tensor) -> Tensor:
    """Lengths (..., bones) of bone vectors (..., bones, 3); at least `SHORTEST_BONE`."""
    return torch.linalg.vector_norm(bones, dim=-1).clamp(min=SHORTEST_BONE)


def bone_directions(bones: Tensor) -> Tensor:
    """Unit vectors (..., bones, 3); a zero-length bone gives 0 and a finite gradient."""
    return nn.functional.normalize(bones, dim=-1, eps=SHORTEST_BONE)


def average_bone_lengths(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """(..., groups) length of each left/right-tied bone group, for joints (..., J, 3)."""
    lengths = bone_lengths(joints_to_bones(joints, skeleton))
    return lengths @ skeleton_tables(skeleton, joints.device, joints.dtype).pooling.T


def per_bone(group_values: Tensor, skeleton: Skeleton) -> Tensor:
    """(..., bones) from one value per length group (..., groups)."""
    tables = skeleton_tables(skeleton, group_values.device, group_values.dtype)
    return group_values.index_select(-1, tables.groups)


def with_bone_lengths(joints: Tensor, lengths: Tensor, skeleton: Skeleton) -> Tensor:
    """The same pose on another body: directions and root kept, lengths (..., bones) replaced.

    With lengths of other people it is the released code's random bone-length swap.
    """
    bones = bone_directions(joints_to_bones(joints, skeleton)) * lengths.unsqueeze(-1)
    return bones_to_joints(bones, skeleton, joints[..., skeleton.root, :])

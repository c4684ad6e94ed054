"""Do joints in this order look like this skeleton? Figures that a wrong order would give away."""

from __future__ import annotations

import torch
from torch import Tensor

from .bones import average_bone_lengths, bone_lengths, joints_to_bones, per_bone
from .skeleton import Skeleton

_BENT = 0.05  # a knee this share of the leg's length off the straight line shows where it bends


def asymmetry(joints: Tensor, skeleton: Skeleton) -> float:
    """Mean |left - right| / mean length of paired bones, median over (N, T, J, 3); Inf for none."""
    if not joints.shape[0]:
        return float("inf")
    lengths = bone_lengths(joints_to_bones(joints, skeleton))
    mean = per_bone(average_bone_lengths(joints, skeleton), skeleton)
    return (2 * (lengths - mean).abs() / mean).mean(-1).median().item()


def length_variation(joints: Tensor, skeleton: Skeleton) -> float:
    """Standard deviation / mean of the most variable bone over samples (N, T, J, 3).

    People differ by less than joints that no bone connects. NaN for fewer than 16 samples.
    """
    if joints.shape[0] < 16:
        return torch.nan
    lengths = bone_lengths(joints_to_bones(joints[:, joints.shape[1] // 2], skeleton))
    return (lengths.std(0) / lengths.mean(0)).max().item()


def detour(joints: Tensor, skeleton: Skeleton) -> float:
    """Length of the skeleton / length of the shortest tree through its joints (N, T, J, 3).

    A body's bones are nearly that tree. An order that keeps bones rigid and symmetric but mistakes
    shoulders for hips, or a spine for a thorax, runs to and fro.
    """
    distances = torch.cdist(joints, joints).flatten(0, 1).median(0).values.tolist()
    own = sum(
        distances[child][parent]
        for child, parent in zip(skeleton.bone_children, skeleton.bone_parents, strict=True)
    )
    # Prim's algorithm; J is two dozen.
    nearest = dict(enumerate(distances[skeleton.root]))
    del nearest[skeleton.root]
    shortest = 0.0
    while nearest:
        joint = min(nearest, key=nearest.__getitem__)
        shortest += nearest.pop(joint)
        nearest = {j: min(d, distances[joint][j]) for j, d in nearest.items()}
    return own / max(shortest, 1e-9)


def knees_forward_share(joints: Tensor, skeleton: Skeleton) -> float:
    """Of bent knees, the share that bends to the front; 1 - that of a mirrored body.

    To the front is left x up, with parts named left_leg and right_leg from the hip down, and up
    from the hips to the other joints. NaN for skeletons without such parts, or without bent knees.
    """
    parts = dict(skeleton.part_joints)
    legs = [parts.get(f"{side}_leg", ()) for side in ("left", "right")]
    if any(len(leg) < 3 for leg in legs):
        return torch.nan
    thighs = [joints[..., leg[0], :] for leg in legs]
    above = [j for j in range(skeleton.num_joints) if j not in (*legs[0], *legs[1])]
    up = joints[..., above, :].mean(-2) - (thighs[0] + thighs[1]) / 2
    front = torch.linalg.cross(thighs[0] - thighs[1], up)
    front = front / front.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    forward = []
    for hip, knee, ankle in (leg[:3] for leg in legs):
        bend = joints[..., knee, :] - (joints[..., hip, :] + joints[..., ankle, :]) / 2
        length = (joints[..., hip, :] - joints[..., ankle, :]).norm(dim=-1)
        bent = bend.norm(dim=-1) > _BENT * length
        forward.append((bend * front).sum(-1)[bent] > 0)
    return torch.cat(forward).float().mean().item()

"""Viewpoints and joint angles of bodies with Human3.6M's 16 joints, in camera space."""

from __future__ import annotations

import torch
from torch import Tensor, einsum
from torch.nn.functional import cosine_similarity, normalize

from poseaug_plugin.body.bones import bone_lengths, joints_to_bones
from poseaug_plugin.body.presets import H36M_16

_SIZE = 3.6  # metres: sum of the bone lengths of an aligned body
_BENT = 15.0  # degrees of flexion from which the direction of a knee counts
_INDEX = {name: i for i, name in enumerate(H36M_16.joints)}


def _pair(joints: Tensor, name: str) -> Tensor:
    """The left and the right joint of a name: (N, J, 3) to (N, 2, 3)."""
    return joints[:, [_INDEX[f"left_{name}"], _INDEX[f"right_{name}"]]]


def body_frames(joints: Tensor) -> Tensor:
    """Axes of bodies (N, J, 3), rows of (N, 3, 3): to the left, up the trunk, to the front."""
    up = normalize(joints[:, _INDEX["thorax"]] - joints[:, _INDEX["hip"]])
    across = -(_pair(joints, "hip") + _pair(joints, "shoulder")).diff(dim=1)[:, 0]
    left = normalize(across - (across * up).sum(-1, keepdim=True) * up)
    return torch.stack([left, up, torch.linalg.cross(left, up)], 1)


def viewpoints(joints: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth and elevation (N,) of the camera in degrees, from bodies (N, J, 3); 0, 0: front."""
    left, up, front = einsum("nij,nj->in", body_frames(joints), normalize(-joints[:, 0]))
    return torch.atan2(left, front).rad2deg(), up.clamp(-1, 1).asin().rad2deg()


def joint_angles(joints: Tensor) -> dict[str, Tensor]:
    """Degrees (N, 2), left and right: flexion is 0 when straight, elevation for hanging arms."""
    places = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    shoulder, elbow, wrist, hip, knee, ankle = (_pair(joints, name) for name in places)
    down = (joints[:, _INDEX["hip"]] - joints[:, _INDEX["thorax"]])[:, None]
    between = {
        "elbow flexion": (elbow - shoulder, wrist - elbow),
        "knee flexion": (knee - hip, ankle - knee),
        "upper-arm elevation": (elbow - shoulder, down),
    }
    cosines = {name: cosine_similarity(*pair, dim=-1) for name, pair in between.items()}
    return {name: cosine.clamp(-1, 1).acos().rad2deg() for name, cosine in cosines.items()}


def knees_backwards(joints: Tensor) -> Tensor:
    """Poses (N, J, 3) with a clearly bent knee that points behind the body: (N,) bool."""
    bend = _pair(joints, "knee") - (_pair(joints, "hip") + _pair(joints, "ankle")) / 2
    to_front = (bend * body_frames(joints)[:, None, 2]).sum(-1)
    return ((to_front < 0) & (joint_angles(joints)["knee flexion"] > _BENT)).any(1)


def body_aligned(joints: Tensor) -> Tensor:
    """Joints (N, J, 3) about the root, in the body's own axes, all bodies equally large."""
    size = bone_lengths(joints_to_bones(joints, H36M_16)).flatten(1).sum(1)
    return (joints - joints[:, :1]) @ body_frames(joints).mT * (_SIZE / size)[:, None, None]

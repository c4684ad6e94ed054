"""Skeletons of the known data sets, by name."""

from __future__ import annotations

from ..errors import PoseAugError
from .skeleton import Skeleton


def _skeleton(name: str, joints: str, chains: tuple[str, ...], **parts: str) -> Skeleton:
    """A skeleton from its joints in order, chains from a parent outwards, and its parts.

    A part whose joints have no side stands for a left and a right one.
    """
    order = joints.split()
    parent_of: dict[str, str] = {}
    for chain in map(str.split, chains):
        parent_of.update(zip(chain[1:], chain, strict=False))
    named: dict[str, list[str]] = {}
    for part, members in parts.items():
        sides = ("",) if part == "torso" else ("left_", "right_")
        named |= {side + part: [side + joint for joint in members.split()] for side in sides}
    return Skeleton(name, {joint: parent_of.get(joint) for joint in order}, named)


_RIGHT_LEG = " right_hip right_knee right_ankle"
_LEFT_LEG = " left_hip left_knee left_ankle"
_RIGHT_ARM = " right_shoulder right_elbow right_wrist"
_LEFT_ARM = " left_shoulder left_elbow left_wrist"
_H36M = (
    *("hip" + _RIGHT_LEG, "hip" + _LEFT_LEG, "hip spine thorax"),
    *("thorax" + _LEFT_ARM, "thorax" + _RIGHT_ARM),
)

H36M_16 = _skeleton(
    "h36m_16",
    "hip" + _RIGHT_LEG + _LEFT_LEG + " spine thorax head" + _LEFT_ARM + _RIGHT_ARM,
    (*_H36M, "thorax head"),
    arm="shoulder elbow wrist",
    leg="hip knee ankle",
    torso="hip spine thorax head",
)
"""Human3.6M without the neck/nose: SemGCN's and PoseAug's 16 joints."""

H36M_17 = _skeleton(
    "h36m_17",
    "hip" + _RIGHT_LEG + _LEFT_LEG + " spine thorax neck head" + _LEFT_ARM + _RIGHT_ARM,
    (*_H36M, "thorax neck head"),
    arm="shoulder elbow wrist",
    leg="hip knee ankle",
    torso="hip spine thorax neck head",
)
"""Human3.6M with neck/nose: VideoPose3D's 17 joints."""

MPI_INF_3DHP_17 = _skeleton(
    "mpi_inf_3dhp_17",
    "head_top neck" + _RIGHT_ARM + _LEFT_ARM + _RIGHT_LEG + _LEFT_LEG + " pelvis spine head",
    (
        *("pelvis spine neck head head_top", "neck" + _RIGHT_ARM, "neck" + _LEFT_ARM),
        *("pelvis" + _RIGHT_LEG, "pelvis" + _LEFT_LEG),
    ),
    arm="shoulder elbow wrist",
    leg="hip knee ankle",
    torso="pelvis spine neck head head_top",
)
"""MPI-INF-3DHP's 17 test joints; the root (pelvis) is joint 14."""

COCO_17 = _skeleton(
    "coco_17",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow "
    "right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle",
    (
        *("nose left_eye left_ear", "nose right_eye right_ear"),
        *("nose" + _LEFT_ARM, "nose" + _RIGHT_ARM),
        *("left_shoulder" + _LEFT_LEG, "right_shoulder" + _RIGHT_LEG),
    ),
    arm="elbow wrist",
    leg="knee ankle",
    torso="nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_hip "
    "right_hip",
)
"""COCO's 17 keypoints; it has no pelvis, so the nose is the root and each side hangs from it."""

SMPL_24 = _skeleton(
    "smpl_24",
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 "
    "left_foot right_foot neck left_collar right_collar head left_shoulder right_shoulder "
    "left_elbow right_elbow left_wrist right_wrist left_hand right_hand",
    (
        *("pelvis" + _LEFT_LEG + " left_foot", "pelvis" + _RIGHT_LEG + " right_foot"),
        *("pelvis spine1 spine2 spine3 neck head",),
        *("spine3 left_collar" + _LEFT_ARM + " left_hand",),
        *("spine3 right_collar" + _RIGHT_ARM + " right_hand",),
    ),
    arm="shoulder elbow wrist hand",
    leg="hip knee ankle foot",
    torso="pelvis spine1 spine2 spine3 neck head left_collar right_collar",
)
"""SMPL's 24 joints."""

SKELETONS: dict[str, Skeleton] = {
    s.name: s for s in (H36M_16, H36M_17, MPI_INF_3DHP_17, COCO_17, SMPL_24)
}
"""The presets by name."""


def find_skeleton(skeleton: str | Skeleton) -> Skeleton:
    """A preset by its name; a `Skeleton` passes through.

    Raises:
        PoseAugError: The name is none of `SKELETONS`.
    """
    if isinstance(skeleton, Skeleton):
        return skeleton
    if not isinstance(skeleton, str) or skeleton not in SKELETONS:
        raise PoseAugError(
            f"skeleton must be a Skeleton or one of {', '.join(SKELETONS)}, got {skeleton!r}."
        )
    return SKELETONS[skeleton]

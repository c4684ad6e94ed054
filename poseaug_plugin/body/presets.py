"""Skeletons of the known data sets, by name."""

from itertools import pairwise

from ..errors import PoseAugError
from .skeleton import Skeleton

_LEFT_LEG, _RIGHT_LEG = " left_hip left_knee left_ankle", " right_hip right_knee right_ankle"
_LEFT_ARM = " left_shoulder left_elbow left_wrist"
_RIGHT_ARM = " right_shoulder right_elbow right_wrist"


def _skeleton(name: str, joints: str, torso: tuple[str, ...], arm: str, leg: str) -> Skeleton:
    """A skeleton from its joints in order and chains of them, each from a parent outwards.

    That of arm or leg begins with the torso's joint, and is of a left and of a right limb.
    """
    order = joints.split()
    chains = [chain.split() for chain in torso]
    parts = {}
    for part, chain in (("arm", arm.split()), ("leg", leg.split())):
        for side in ("left_", "right_"):
            limb = [side + joint for joint in chain[1:]]
            chains.append([chain[0] if chain[0] in order else side + chain[0], *limb])
            parts[side + part] = limb
    parts["torso"] = list(dict.fromkeys(" ".join(torso).split()))
    parents = {child: parent for chain in chains for parent, child in pairwise(chain)}
    return Skeleton(name, {joint: parents.get(joint) for joint in order}, parts)


def _human36m(name: str, trunk: str) -> Skeleton:
    joints = f"hip{_RIGHT_LEG}{_LEFT_LEG} {trunk}{_LEFT_ARM}{_RIGHT_ARM}"
    arm, leg = "thorax shoulder elbow wrist", "hip hip knee ankle"
    return _skeleton(name, joints, torso=(f"hip {trunk}",), arm=arm, leg=leg)


H36M_16 = _human36m("h36m_16", "spine thorax head")
"""Human3.6M without the neck/nose: SemGCN's and PoseAug's 16 joints."""

H36M_17 = _human36m("h36m_17", "spine thorax neck head")
"""Human3.6M with neck/nose: VideoPose3D's 17 joints."""

MPI_INF_3DHP_17 = _skeleton(
    "mpi_inf_3dhp_17",
    "head_top neck" + _RIGHT_ARM + _LEFT_ARM + _RIGHT_LEG + _LEFT_LEG + " pelvis spine head",
    torso=("pelvis spine neck head head_top",),
    arm="neck shoulder elbow wrist",
    leg="pelvis hip knee ankle",
)
"""MPI-INF-3DHP's 17 test joints; the root (pelvis) is joint 14."""

COCO_17 = _skeleton(
    "coco_17",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow "
    "right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle",
    torso=(
        *("nose left_eye left_ear", "nose right_eye right_ear"),
        *("nose left_shoulder left_hip", "nose right_shoulder right_hip"),
    ),
    arm="shoulder elbow wrist",
    leg="hip knee ankle",
)
"""COCO's 17 keypoints; it has no pelvis, so the nose is the root and each side hangs from it."""

SMPL_24 = _skeleton(
    "smpl_24",
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 "
    "left_foot right_foot neck left_collar right_collar head left_shoulder right_shoulder "
    "left_elbow right_elbow left_wrist right_wrist left_hand right_hand",
    torso=("pelvis spine1 spine2 spine3 neck head", "spine3 left_collar", "spine3 right_collar"),
    arm="collar shoulder elbow wrist hand",
    leg="pelvis hip knee ankle foot",
)
"""SMPL's 24 joints."""

SKELETONS = {s.name: s for s in (H36M_16, H36M_17, MPI_INF_3DHP_17, COCO_17, SMPL_24)}
"""The presets by name."""


def find_skeleton(skeleton: str | Skeleton) -> Skeleton:
    """A preset by its name, or `PoseAugError`; a `Skeleton` passes through."""
    if isinstance(skeleton, Skeleton):
        return skeleton
    if not isinstance(skeleton, str) or skeleton not in SKELETONS:
        names = ", ".join(SKELETONS)
        raise PoseAugError(f"skeleton must be a Skeleton or one of {names}, got {skeleton!r}.")
    return SKELETONS[skeleton]

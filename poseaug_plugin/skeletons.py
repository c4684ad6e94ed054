"""Skeletons of the known data sets, by name."""

from __future__ import annotations

from .errors import PoseAugError
from .skeleton import Skeleton

_LEGS = {
    "left_leg": ("left_hip", "left_knee", "left_ankle"),
    "right_leg": ("right_hip", "right_knee", "right_ankle"),
}
_ARMS = {
    "left_arm": ("left_shoulder", "left_elbow", "left_wrist"),
    "right_arm": ("right_shoulder", "right_elbow", "right_wrist"),
}
_H36M_LEGS = {
    "hip": None,
    "right_hip": "hip",
    "right_knee": "right_hip",
    "right_ankle": "right_knee",
    "left_hip": "hip",
    "left_knee": "left_hip",
    "left_ankle": "left_knee",
    "spine": "hip",
    "thorax": "spine",
}
_H36M_ARMS = {
    "left_shoulder": "thorax",
    "left_elbow": "left_shoulder",
    "left_wrist": "left_elbow",
    "right_shoulder": "thorax",
    "right_elbow": "right_shoulder",
    "right_wrist": "right_elbow",
}

H36M_16 = Skeleton(
    "h36m_16",
    parents={**_H36M_LEGS, "head": "thorax", **_H36M_ARMS},
    parts={**_ARMS, **_LEGS, "torso": ("hip", "spine", "thorax", "head")},
)
"""Human3.6M without the neck/nose: SemGCN's and PoseAug's 16 joints."""

H36M_17 = Skeleton(
    "h36m_17",
    parents={**_H36M_LEGS, "neck": "thorax", "head": "neck", **_H36M_ARMS},
    parts={**_ARMS, **_LEGS, "torso": ("hip", "spine", "thorax", "neck", "head")},
)
"""Human3.6M with neck/nose: VideoPose3D's 17 joints."""

MPI_INF_3DHP_17 = Skeleton(
    "mpi_inf_3dhp_17",
    parents={
        "head_top": "head",
        "neck": "spine",
        "right_shoulder": "neck",
        "right_elbow": "right_shoulder",
        "right_wrist": "right_elbow",
        "left_shoulder": "neck",
        "left_elbow": "left_shoulder",
        "left_wrist": "left_elbow",
        "right_hip": "pelvis",
        "right_knee": "right_hip",
        "right_ankle": "right_knee",
        "left_hip": "pelvis",
        "left_knee": "left_hip",
        "left_ankle": "left_knee",
        "pelvis": None,
        "spine": "pelvis",
        "head": "neck",
    },
    parts={**_ARMS, **_LEGS, "torso": ("pelvis", "spine", "neck", "head", "head_top")},
)
"""MPI-INF-3DHP's 17 test joints; the root (pelvis) is joint 14."""

COCO_17 = Skeleton(
    "coco_17",
    parents={
        "nose": None,
        "left_eye": "nose",
        "right_eye": "nose",
        "left_ear": "left_eye",
        "right_ear": "right_eye",
        "left_shoulder": "nose",
        "right_shoulder": "nose",
        "left_elbow": "left_shoulder",
        "right_elbow": "right_shoulder",
        "left_wrist": "left_elbow",
        "right_wrist": "right_elbow",
        "left_hip": "left_shoulder",
        "right_hip": "right_shoulder",
        "left_knee": "left_hip",
        "right_knee": "right_hip",
        "left_ankle": "left_knee",
        "right_ankle": "right_knee",
    },
    parts={
        "left_arm": ("left_elbow", "left_wrist"),
        "right_arm": ("right_elbow", "right_wrist"),
        "left_leg": ("left_knee", "left_ankle"),
        "right_leg": ("right_knee", "right_ankle"),
        "torso": (
            *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
            *("left_shoulder", "right_shoulder", "left_hip", "right_hip"),
        ),
    },
)
"""COCO's 17 keypoints; it has no pelvis, so the nose is the root and each side hangs from it."""

SMPL_24 = Skeleton(
    "smpl_24",
    parents={
        "pelvis": None,
        "left_hip": "pelvis",
        "right_hip": "pelvis",
        "spine1": "pelvis",
        "left_knee": "left_hip",
        "right_knee": "right_hip",
        "spine2": "spine1",
        "left_ankle": "left_knee",
        "right_ankle": "right_knee",
        "spine3": "spine2",
        "left_foot": "left_ankle",
        "right_foot": "right_ankle",
        "neck": "spine3",
        "left_collar": "spine3",
        "right_collar": "spine3",
        "head": "neck",
        "left_shoulder": "left_collar",
        "right_shoulder": "right_collar",
        "left_elbow": "left_shoulder",
        "right_elbow": "right_shoulder",
        "left_wrist": "left_elbow",
        "right_wrist": "right_elbow",
        "left_hand": "left_wrist",
        "right_hand": "right_wrist",
    },
    parts={
        "left_arm": ("left_shoulder", "left_elbow", "left_wrist", "left_hand"),
        "right_arm": ("right_shoulder", "right_elbow", "right_wrist", "right_hand"),
        "left_leg": ("left_hip", "left_knee", "left_ankle", "left_foot"),
        "right_leg": ("right_hip", "right_knee", "right_ankle", "right_foot"),
        "torso": (
            *("pelvis", "spine1", "spine2", "spine3", "neck", "head"),
            *("left_collar", "right_collar"),
        ),
    },
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
    if skeleton not in SKELETONS:
        raise PoseAugError(
            f"skeleton must be a Skeleton or one of {', '.join(SKELETONS)}, got {skeleton!r}."
        )
    return SKELETONS[skeleton]

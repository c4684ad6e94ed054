"""PoseAug's learned pose augmentation for the training loop you already have.

Gong, Zhang and Feng: PoseAug: A Differentiable Pose Augmentation Framework for 3D Human Pose
Estimation, CVPR 2021.
"""

from .adversary.critics import KeypointCritic, PartKCSCritic
from .augment.policy import AugmentationPolicy, RandomPolicy, Spread
from .augment.transforms import AugmentationParameters, AugmentedPoses, Policy, apply_augmentation
from .body.bones import root_relative
from .body.camera import normalize_screen_coordinates, project_points, solve_root
from .body.poses import CanonicalPoses
from .body.presets import SKELETONS
from .body.skeleton import Skeleton
from .errors import PoseAugError, PoseAugWarning
from .hook import PoseAugHook
from .host.adapter import Adapter, HostPoses, PoseAdapter
from .host.sequences import PoseSource

__version__ = "0.1.0"

__all__ = [
    "SKELETONS",
    "Adapter",
    "AugmentationParameters",
    "AugmentationPolicy",
    "AugmentedPoses",
    "CanonicalPoses",
    "HostPoses",
    "KeypointCritic",
    "PartKCSCritic",
    "Policy",
    "PoseAdapter",
    "PoseAugError",
    "PoseAugHook",
    "PoseAugWarning",
    "PoseSource",
    "RandomPolicy",
    "Skeleton",
    "Spread",
    "apply_augmentation",
    "normalize_screen_coordinates",
    "project_points",
    "root_relative",
    "solve_root",
]

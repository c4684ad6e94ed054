"""PoseAug's learned pose augmentation for the training loop you already have.

Gong, Zhang and Feng: PoseAug: A Differentiable Pose Augmentation Framework for 3D Human Pose
Estimation, CVPR 2021.
"""

from .adapters import Adapter, CanonicalPoses, HostPoses, PoseAdapter
from .augmentation import AugmentationParameters, AugmentedPoses, apply_augmentation
from .camera import in_view, normalize_screen_coordinates, project_points, solve_root
from .config import PRESETS, PoseAugConfig
from .curriculum import Ramp
from .discriminators import KeypointDiscriminator, MotionDiscriminator, PartKCSDiscriminator
from .errors import PoseAugError, PoseAugWarning
from .hardness import HardnessPredictor
from .hook import PoseAugHook
from .policy import AugmentationPolicy, Policy, RandomPolicy, Spread
from .regressor_policy import RegressorPolicy
from .rigid import root_relative
from .skeleton import Skeleton
from .skeletons import COCO_17, H36M_16, H36M_17, MPI_INF_3DHP_17, SKELETONS, SMPL_24
from .source import PoseSource

__version__ = "0.1.0"

__all__ = [
    "COCO_17",
    "H36M_16",
    "H36M_17",
    "MPI_INF_3DHP_17",
    "PRESETS",
    "SKELETONS",
    "SMPL_24",
    "Adapter",
    "AugmentationParameters",
    "AugmentationPolicy",
    "AugmentedPoses",
    "CanonicalPoses",
    "HardnessPredictor",
    "HostPoses",
    "KeypointDiscriminator",
    "MotionDiscriminator",
    "PartKCSDiscriminator",
    "Policy",
    "PoseAdapter",
    "PoseAugConfig",
    "PoseAugError",
    "PoseAugHook",
    "PoseAugWarning",
    "PoseSource",
    "Ramp",
    "RandomPolicy",
    "RegressorPolicy",
    "Skeleton",
    "Spread",
    "apply_augmentation",
    "in_view",
    "normalize_screen_coordinates",
    "project_points",
    "root_relative",
    "solve_root",
]

"""Policies: from poses and noise to `AugmentationParameters`, at random or with learned spreads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from ..body.bones import bone_directions, joints_to_bones, per_bone, root_relative
from ..body.presets import find_skeleton
from ..body.rotation import turn_by, vertical, view_rotation
from ..body.skeleton import Skeleton
from ..errors import PoseAugError, check_number
from .transforms import AugmentationParameters, Policy, identity_parameters, middle_frame

Operation = Literal["bone_angle", "bone_length", "rigid", "focal_length"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

# Bounds of the learned factors: a spread narrows to a third at most, and widens to the default at
# most. Wider views cost more than they give, and wilder bones bend every tenth knee backwards
# (docs/experiments.md). The gain lets Adam's small steps cross this range in some hundred updates.
_MAY_NARROW = math.log(3)
_WIDENING_GAIN = 100.0
# What each learned factor multiplies, and the operation that reads it.
_FACTORS: dict[str, tuple[Operation, tuple[str, ...]]] = {
    "pitch": ("rigid", ("pitch",)),
    "roll": ("rigid", ("roll",)),
    "limb_angle": ("bone_angle", ("limb_angle",)),
    "bone_angle": ("bone_angle", ("bone_angle", "torso_angle")),
    "bone_length": ("bone_length", ("bone_length", "torso_length")),
}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How widely random augmentation draws; angles in radians, normal ones by standard deviation.

    Attributes:
        yaw: Turn about the vertical on which the batch stands (`rotation.vertical`), uniform in
            +-yaw; pi is every side.
        pitch: Tilt towards the camera, normal.
        roll: Lean in the picture, normal.
        depth: A pose takes the root position of another pose of the batch, times a factor drawn
            uniformly between these two.
        keep_view: Share of the poses that keep their view and place, so that only their body
            changes: one hard thing at a time.
        limb_angle: Limbs turn as a whole about their hip or shoulder, normal about each axis. Arms
            (parts with "arm" in their name) reach further and turn twice as far.
        bone_angle: Offset added to the unit vector of every bone of a limb, normal per coordinate.
        torso_angle: The same for the bones of no limb: trunk, hips, shoulders, neck and head.
        bone_length: Length ratios of a limb's bones are uniform in +-bone_length, left and right
            tied.
        torso_length: The same for the bones of no limb. Skeletons differ in where they put these
            joints, more than people differ.
        focal_length: Logarithm of a factor on the focal length, uniform in +-focal_length; only
            with ``augment(..., return_camera=True)``. For known people seen through other lenses.

    Raises `PoseAugError` for a value that is no width: negative, not finite, or of another kind.
    """

    yaw: float = math.pi
    pitch: float = 0.5
    roll: float = 0.2
    depth: tuple[float, float] = (0.7, 1.5)
    keep_view: float = 1 / 3
    limb_angle: float = 0.3
    bone_angle: float = 0.105
    torso_angle: float = 0.21
    bone_length: float = 0.15
    torso_length: float = 0.35
    focal_length: float = 0.0

    def __post_init__(self) -> None:
        widths = {name: value for name, value in vars(self).items() if name != "depth"}
        for name, value in widths.items():
            is_share = name in ("keep_view", "bone_length", "torso_length")
            check_number(f"Spread: {name}", value, 0.0, 1.0 if is_share else math.inf)
        depth = self.depth
        if not isinstance(depth, (tuple, list)) or len(depth) != 2:
            raise PoseAugError(
                f"Spread: depth must be a pair of factors, (nearest, furthest), got {depth!r}."
            )
        check_number("Spread: the nearest depth", depth[0], 1e-3)
        check_number("Spread: the furthest depth", depth[1], depth[0])


class SpreadFactors(NamedTuple):
    """Factors on the spreads of a base distribution."""

    pitch: Tensor | float = 1.0
    roll: Tensor | float = 1.0
    limb_angle: Tensor | float = 1.0
    bone_angle: Tensor | float = 1.0  # torso_angle too
    bone_length: Tensor | float = 1.0  # torso_length too


def _either_way(normal: Tensor) -> Tensor:
    """Standard normal to uniform in (-1, 1)."""
    return (normal * math.sqrt(0.5)).erf()


class RandomPolicy(Policy):
    """Random augmentation with nothing learned: the baseline without PoseAug.

    ``operations`` are those of `OPERATIONS` to do, by default all.

    Example:
        >>> policy = RandomPolicy("h36m_16")
        >>> joints = torch.randn(8, 1, 16, 3) + torch.tensor([0.0, 0.0, 5.0])
        >>> policy(joints, torch.randn(8, policy.noise_size)).rotation.shape
        torch.Size([8, 1, 3, 3])
    """

    reach_of_limbs: Tensor  # (bones, limbs)
    spread_of_offset: Tensor  # (bones, 1)
    spread_of_ratio: Tensor  # (bones,)

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        spread: Spread | None = None,
        operations: tuple[Operation, ...] | None = None,
    ) -> None:
        super().__init__()
        self.skeleton = find_skeleton(skeleton)
        self.spread = spread or Spread()
        self.operations = check_operations(operations)
        bones, limbs = self.skeleton.num_bones, len(self.skeleton.limbs)
        self._sizes = (3 * bones, self.skeleton.num_bone_length_groups, 3, 3, 3 * limbs, 1)
        self.noise_size = sum(self._sizes)
        reach = _reach_of_limbs(self.skeleton)
        self.register_buffer("reach_of_limbs", reach, persistent=False)
        in_limb = reach.any(1)
        angles = torch.where(in_limb, self.spread.bone_angle, self.spread.torso_angle)
        self.register_buffer("spread_of_offset", angles.unsqueeze(1), persistent=False)
        lengths = torch.where(in_limb, self.spread.bone_length, self.spread.torso_length)
        self.register_buffer("spread_of_ratio", lengths, persistent=False)

    @override
    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        return self.draw(joints, noise, SpreadFactors())

    def draw(
        self, joints: Tensor, noise: Tensor, factors: SpreadFactors, strength: Tensor | float = 1.0
    ) -> AugmentationParameters:
        """Draw with spreads multiplied by ``factors`` and ``strength``; at 0 all poses stay."""
        spread, skeleton, does = self.spread, self.skeleton, self.operations
        offset, ratio, rotation, place, focal_ratio = identity_parameters(joints, skeleton)
        middle = joints[:, middle_frame(joints.shape[1])]
        directions, lengths, view, where, limbs, zoom = noise.split(self._sizes, dim=1)

        limbs = rearrange(limbs, "batch (limbs xyz) -> batch limbs xyz", xyz=3)
        turns = limbs * (spread.limb_angle * (factors.limb_angle * strength))
        directions = rearrange(directions, "batch (bones xyz) -> batch 1 bones xyz", xyz=3)
        directions = directions * (self.spread_of_offset * (factors.bone_angle * strength))
        lengths = _either_way(lengths)
        yaw = _either_way(view[:, 0:1]) * (spread.yaw * strength)
        pitch = view[:, 1:2] * (spread.pitch * (factors.pitch * strength))
        roll = view[:, 2:3] * (spread.roll * (factors.roll * strength))
        whose, how_far = torch.special.ndtr(where[:, :2, None, None]).unbind(1)  # uniform
        donor = (whose.flatten() * len(joints)).long().clamp(max=len(joints) - 1)
        nearest, furthest = spread.depth
        moved = place[donor] * (nearest + (furthest - nearest) * how_far)
        keeps_view = _either_way(where[:, 2, None, None]) < 2 * spread.keep_view - 1
        if "focal_length" in does and spread.focal_length:
            focal_ratio = (_either_way(zoom) * (spread.focal_length * strength)).exp()

        bones = bone_directions(joints_to_bones(middle, skeleton))
        widths = self.spread_of_ratio * (factors.bone_length * strength)
        if "bone_length" in does:
            ratio = (per_bone(lengths, skeleton) * widths).unsqueeze(1)
        standing = root_relative(middle, skeleton)
        if "bone_angle" in does:
            offset = turn_by(self.reach_of_limbs @ turns, bones).unsqueeze(1) + directions
        if "rigid" in does:
            turned = view_rotation(yaw, pitch, roll, vertical(standing))
            rotation = torch.where(keeps_view[..., None], rotation, turned)
            # Exact at a strength of 1: the distance to the own place is not taken then.
            place = torch.where(keeps_view, place, torch.lerp(place, moved, strength))
        return AugmentationParameters(offset, ratio, rotation, place, focal_ratio)


class AugmentationPolicy(Policy):
    """The learned policy: random augmentation whose spreads are learned.

    It starts as `RandomPolicy`, so poses are plausible and in frame from the first step, and a
    batch stays diverse whatever is learned. Critics narrow its spreads, entropy widens them again,
    and the estimator's error sets the strength of all. PoseAug's own networks, which regress single
    parameters, are `reference.regressors`; as a residual on these draws they lost.

    Arguments and shapes are those of `RandomPolicy`; ``spread`` is that of the beginning.
    """

    room_to_widen: Tensor  # (5,) logarithms
    used_factors: Tensor  # (5,) 1 where an operation reads it
    strength: Tensor  # 0-d, in [0, 1]; the hook's feedback sets it and keeps it

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        spread: Spread | None = None,
        operations: tuple[Operation, ...] | None = None,
    ) -> None:
        super().__init__()
        self.base = RandomPolicy(skeleton, spread=spread, operations=operations)
        self.noise_size = self.base.noise_size
        self.widening = nn.Parameter(torch.zeros(len(SpreadFactors._fields)))
        room = [_room_to_widen(self.base.spread, names) for _, names in _FACTORS.values()]
        used = [float(operation in self.base.operations) for operation, _ in _FACTORS.values()]
        self.register_buffer("room_to_widen", torch.tensor(room), persistent=False)
        self.register_buffer("used_factors", torch.tensor(used), persistent=False)
        self.register_buffer("strength", torch.ones(()), persistent=False)

    def log_spread_factors(self) -> Tensor:
        """(5,) logarithms of the learned `SpreadFactors`, bounded."""
        raw = self.widening * _WIDENING_GAIN
        bound = self.room_to_widen.where(raw > 0, _MAY_NARROW)
        return bound * (raw / bound).tanh()

    def spread_factors(self) -> SpreadFactors:
        """The learned factors on the spreads of the base."""
        return SpreadFactors(*self.log_spread_factors().exp().unbind())

    def changes(self) -> Iterator[str]:
        """Spreads that are no longer those of the beginning, by more than 5 %; reads the device."""
        if self.strength < 1:
            yield f"all spreads x {self.strength:.2f} (strength)"
        for name, factor in self.spread_factors()._asdict().items():
            if abs(factor.log()) > 0.05:
                yield f"{name} x {factor:.2f}"

    @override
    def entropy(self) -> Tensor:
        return self.log_spread_factors().dot(self.used_factors)

    @override
    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        return self.base.draw(joints, noise, self.spread_factors(), self.strength)


def check_operations(operations: object) -> tuple[Operation, ...]:
    """The operations as a tuple, all for None; `PoseAugError` for what is none of `OPERATIONS`."""
    if operations is None:
        return OPERATIONS
    if isinstance(operations, (tuple, list)) and all(o in OPERATIONS for o in operations):
        return tuple(operations)
    raise PoseAugError(f"operations must be a tuple out of {OPERATIONS}, got {operations!r}.")


def _room_to_widen(spread: Spread, names: tuple[str, ...]) -> float:
    """Logarithm of how many times the spreads of these names may grow."""
    pairs = [(getattr(spread, name), getattr(Spread(), name)) for name in names]
    room = min((math.log(default / own) for own, default in pairs if own > 0), default=0.0)
    return max(room, 1e-3)  # it divides


def _reach_of_limbs(skeleton: Skeleton) -> Tensor:
    """(bones, limbs): how far a limb's bones turn with it about its hip or shoulder."""
    table = torch.zeros(skeleton.num_bones, len(skeleton.limbs))
    for limb, (name, joints) in enumerate(skeleton.limbs):
        # Hip or shoulder comes first, or is what an elbow or a knee hangs from (COCO).
        beyond = joints[1:] if len(joints) > 2 else joints
        bones = [skeleton.bone_children.index(joint) for joint in beyond]
        # Arms reach further than legs, which carry the body.
        table[bones, limb] = 2.0 if "arm" in name.lower() else 1.0
    return table

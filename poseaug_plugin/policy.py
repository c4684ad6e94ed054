"""From poses and noise to `AugmentationParameters`: at random, or learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .augmentation import (
    AugmentationParameters,
    identity_parameters,
    offset_of_turns,
)
from .bones import per_bone
from .errors import PoseAugError
from .rigid import root_relative, vertical, view_rotation
from .skeleton import Skeleton
from .skeletons import find_skeleton
from .windows import middle_frame

Operation = Literal["bone_angle", "bone_length", "rigid", "focal_length"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

# What is learned on the base's spreads, as logarithms: down to a third of them, up to the default
# ones, and never beyond those of a base that is wide already. Wider views cost more than they give,
# and wilder bones bend every tenth knee backwards (docs/experiments.md, sections 7 and 39). The
# gain lets Adam's small steps, meant for networks, take them there within some hundred updates.
_MAY_NARROW = math.log(3)
_WIDENING_GAIN = 100.0
_REACH_OF_ARMS = 2.0  # times that of legs, which carry the body
# Spreads that a factor multiplies besides the one it is named after.
_MULTIPLIED_TOO = {"bone_angle": ("torso_angle",), "bone_length": ("torso_length",)}
_OPERATION_OF_FACTOR: tuple[Operation, ...] = (
    "rigid",
    "rigid",
    "bone_angle",
    "bone_angle",
    "bone_length",
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How widely random augmentation draws.

    Attributes:
        yaw: Turn about the vertical on which the batch stands (`rigid.vertical`), uniform in
            +-yaw, radians; pi is every side.
        pitch: Tilt towards the camera, standard deviation in radians.
        roll: Lean in the picture, standard deviation in radians.
        depth: A pose takes the root position of another pose of the batch, times a factor drawn
            uniformly between these two.
        own_view: Share of the poses that keep their view and place, so that only their body
            changes: one hard thing at a time (docs/experiments.md, section 34). ``placement``
            still moves them.
        limb_angle: Limbs turn as a whole about their hip or shoulder: standard deviation per axis
            in radians. Arms (parts with "arm" in their name) reach further and turn twice as far.
        bone_angle: Standard deviation per coordinate of the offset added to unit bone vectors,
            every bone of a limb on its own.
        torso_angle: The same for the bones of no limb: trunk, hips, shoulders, neck and head.
            Skeletons differ in where they put these joints, and bending what leads there helps with
            other people, graph networks most (docs/experiments.md, section 37).
        bone_length: Length ratios of a limb's bones are uniform in +-bone_length, left and right
            tied.
        torso_length: The same for the bones of no limb, whose lengths differ more between data sets
            than between people: hips, shoulders, neck and head sit elsewhere in another skeleton
            (docs/experiments.md, section 38).
        focal_length: The logarithm of what the focal length is multiplied by, uniform in
            +-focal_length; only with ``augment(..., return_camera=True)``. For known people seen
            through other lenses (docs/experiments.md, section 7).
    """

    yaw: float = math.pi
    pitch: float = 0.5
    roll: float = 0.2
    depth: tuple[float, float] = (0.7, 1.5)
    own_view: float = 1 / 3
    limb_angle: float = 0.3
    bone_angle: float = 0.105
    torso_angle: float = 0.21
    bone_length: float = 0.15
    torso_length: float = 0.35
    focal_length: float = 0.0

    def __post_init__(self) -> None:
        depth = self.depth
        if not isinstance(depth, (tuple, list)) or len(depth) != 2 or not 0 < depth[0] <= depth[1]:
            raise PoseAugError(
                f"Spread: depth must be a pair of factors, (nearest, furthest), got {depth!r}."
            )
        if not 0 <= self.own_view <= 1:
            raise PoseAugError(f"Spread: own_view must be a share, 0 to 1, got {self.own_view!r}.")


class SpreadFactors(NamedTuple):
    """What the spreads of a base distribution are multiplied by."""

    pitch: Tensor | float = 1.0
    roll: Tensor | float = 1.0
    limb_angle: Tensor | float = 1.0
    bone_angle: Tensor | float = 1.0  # torso_angle too
    bone_length: Tensor | float = 1.0  # torso_length too


class Policy(nn.Module):
    """From poses and noise to the parameters of an augmentation; one's own overrides `forward`.

    Shape:
        joints (B, T, J, 3) camera-space metres and noise (B, noise_size), standard normal ->
        `AugmentationParameters`. The same poses and noise give the same parameters.
    """

    noise_size: int
    """Standard normal numbers that one augmentation takes."""

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        """Choose the parameters."""
        raise TypeError(f"{type(self).__name__} must define forward(joints, noise).")

    def entropy(self) -> Tensor | None:
        """How widely the policy draws, 0-d, in nats and up to a constant; None if that is fixed."""
        return None


def _uniform(normal: Tensor) -> Tensor:
    """Standard normal to uniform in (0, 1)."""
    return torch.special.ndtr(normal)


def _either_way(normal: Tensor) -> Tensor:
    """Standard normal to uniform in (-1, 1)."""
    return (normal * math.sqrt(0.5)).erf()


class RandomPolicy(Policy):
    """Random augmentation with nothing learned: what one would use without PoseAug.

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        spread: How widely to draw.
        operations: Which of ``bone_angle``, ``bone_length``, ``rigid`` and ``focal_length`` to do.
        fixed_trunk: Keep the bones between the root and the limbs' attachments unbent, and the
            anchor length unchanged.

    Example:
        >>> policy = RandomPolicy("h36m_16")
        >>> joints = torch.randn(8, 1, 16, 3) + torch.tensor([0.0, 0.0, 5.0])
        >>> policy(joints, torch.randn(8, policy.noise_size)).rotation.shape
        torch.Size([8, 1, 3, 3])
    """

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        spread: Spread | None = None,
        operations: tuple[Operation, ...] = OPERATIONS,
        fixed_trunk: bool = False,
    ) -> None:
        super().__init__()
        self.skeleton = find_skeleton(skeleton)
        self.spread = spread or Spread()
        self.operations = check_operations(operations)
        self.fixed_trunk = fixed_trunk
        bones, limbs = self.skeleton.num_bones, len(self.skeleton.limbs)
        self._sizes = (3 * bones, self.skeleton.num_bone_length_groups, 3, 3, 3 * limbs, 1)
        self.noise_size = sum(self._sizes)
        self.register_buffer("free_bones", free_bones(self.skeleton, fixed_trunk), persistent=False)
        self.register_buffer(
            "free_lengths", free_lengths(self.skeleton, fixed_trunk), persistent=False
        )
        reach = _reach_of_limbs(self.skeleton)
        self.register_buffer("reach_of_limbs", reach, persistent=False)
        in_limb = reach.any(1)
        angles = torch.where(in_limb, self.spread.bone_angle, self.spread.torso_angle)
        self.register_buffer("spread_of_offset", angles.unsqueeze(1), persistent=False)
        lengths = torch.where(in_limb, self.spread.bone_length, self.spread.torso_length)
        self.register_buffer("spread_of_ratio", lengths, persistent=False)

    free_bones: Tensor
    free_lengths: Tensor
    reach_of_limbs: Tensor
    spread_of_offset: Tensor  # (bones, 1)
    spread_of_ratio: Tensor  # (bones,)

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        """Draw parameters."""
        return self.draw(joints, noise, SpreadFactors())

    def draw(self, joints: Tensor, noise: Tensor, factors: SpreadFactors) -> AugmentationParameters:
        """Draw from the distribution with its spreads multiplied."""
        spread, skeleton = self.spread, self.skeleton
        directions, lengths, view, place, limbs, zoom = noise.split(self._sizes, dim=1)
        offset, ratio, rotation, translation, focal_ratio = identity_parameters(joints, skeleton)
        if "bone_angle" in self.operations:
            turns = limbs.unflatten(1, (-1, 3)) * (spread.limb_angle * factors.limb_angle)
            offset = offset_of_turns(joints, self.reach_of_limbs @ turns, skeleton)
            spread_of_offset = self.spread_of_offset * factors.bone_angle
            offset = offset + directions.reshape_as(offset) * spread_of_offset
            offset = offset * self.free_bones
        if "bone_length" in self.operations:
            ratios = per_bone(_either_way(lengths) * self.free_lengths, skeleton)
            ratio = (ratios * (self.spread_of_ratio * factors.bone_length)).unsqueeze(1)
        if "rigid" in self.operations:
            whose, how_far = _uniform(place[:, :2, None, None]).unbind(1)
            batch = joints.shape[0]
            donor = (whose.flatten() * batch).long().clamp(max=batch - 1)
            nearest, furthest = spread.depth
            moved = translation[donor] * (nearest + (furthest - nearest) * how_far)
            middle = joints[:, middle_frame(joints.shape[1])]
            axis = vertical(root_relative(middle, skeleton))
            yaw = _either_way(view[:, 0:1]) * spread.yaw
            pitch = view[:, 1:2] * (spread.pitch * factors.pitch)
            roll = view[:, 2:3] * (spread.roll * factors.roll)
            turned = view_rotation(yaw, pitch, roll, axis)
            own = _either_way(place[:, 2, None, None]) < 2 * spread.own_view - 1
            rotation = torch.where(own[..., None], rotation, turned)
            translation = torch.where(own, translation, moved)
        if "focal_length" in self.operations and spread.focal_length:
            focal_ratio = (_either_way(zoom) * spread.focal_length).exp()
        return AugmentationParameters(offset, ratio, rotation, translation, focal_ratio)


class AugmentationPolicy(Policy):
    """The learned policy: random augmentation whose spreads are learned.

    It starts as `RandomPolicy`, so that poses are plausible and in frame from the first step, and a
    batch stays diverse whatever is learned. Critics and feedback narrow its spreads, entropy widens
    them again. `RegressorPolicy` is the augmentor of PoseAug, which regresses single parameters
    instead; as a residual on these draws it lost (docs/experiments.md, section 39).

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        spread: How widely to draw in the beginning.
        operations: Which of ``bone_angle``, ``bone_length``, ``rigid`` and ``focal_length`` to do.
        fixed_trunk: Keep the bones between the root and the limbs' attachments unbent, and the
            anchor length unchanged.

    Shape:
        joints (B, T, J, 3), noise (B, noise_size) -> `AugmentationParameters`.
    """

    room_to_widen: Tensor
    used_factors: Tensor

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        spread: Spread | None = None,
        operations: tuple[Operation, ...] = OPERATIONS,
        fixed_trunk: bool = False,
    ) -> None:
        super().__init__()
        self.base = RandomPolicy(
            skeleton, spread=spread, operations=operations, fixed_trunk=fixed_trunk
        )
        self.noise_size = self.base.noise_size
        self.widening = nn.Parameter(torch.zeros(len(SpreadFactors._fields)))
        room = torch.tensor(_room_to_widen(self.base.spread))
        self.register_buffer("room_to_widen", room, persistent=False)
        used = [float(operation in self.base.operations) for operation in _OPERATION_OF_FACTOR]
        self.register_buffer("used_factors", torch.tensor(used), persistent=False)

    def log_spread_factors(self) -> Tensor:
        """(5,) logarithms of the learned `SpreadFactors`, bounded."""
        raw = self.widening * _WIDENING_GAIN
        bound = self.room_to_widen.where(raw > 0, _MAY_NARROW)
        return bound * (raw / bound).tanh()

    def spread_factors(self) -> SpreadFactors:
        """What the policy has learned to multiply the spreads of its base by."""
        return SpreadFactors(*self.log_spread_factors().exp().unbind())

    def entropy(self) -> Tensor:
        """Sum of the logarithms of the spreads in use."""
        return self.log_spread_factors().dot(self.used_factors)

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        """Draw from the base with its learned spreads."""
        return self.base.draw(joints, noise, self.spread_factors())


def check_operations(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """Refuse unknown names.

    Raises:
        PoseAugError: An operation is none of `OPERATIONS`.
    """
    unknown = [o for o in operations if o not in OPERATIONS]
    if unknown or isinstance(operations, str):
        raise PoseAugError(f"operations must be a tuple out of {OPERATIONS}, got {operations!r}.")
    return tuple(operations)


def _room_to_widen(spread: Spread) -> list[float]:
    """Logarithms of how many times each spread may grow."""
    rooms = []
    for name in SpreadFactors._fields:
        multiplied = (name, *_MULTIPLIED_TOO.get(name, ()))
        usual = [(getattr(spread, one), getattr(Spread(), one)) for one in multiplied]
        room = min((math.log(default / own) for own, default in usual if own > 0), default=0.0)
        rooms.append(max(room, 1e-3))  # it divides
    return rooms


def free_bones(skeleton: Skeleton, fixed_trunk: bool) -> Tensor:
    """(bones, 1): 0 for bones that must not bend."""
    free = torch.ones(skeleton.num_bones, 1)
    if fixed_trunk:
        free[list(skeleton.trunk_bones)] = 0.0
    return free


def _reach_of_limbs(skeleton: Skeleton) -> Tensor:
    """(bones, limbs): how far a limb's bones turn with it about its hip or shoulder.

    That is the limb's first joint, or what it hangs from if it is an elbow or a knee (COCO).
    """
    table = torch.zeros(skeleton.num_bones, len(skeleton.limbs))
    for limb, (name, joints) in enumerate(skeleton.limbs):
        beyond = joints[1:] if len(joints) > 2 else joints
        bones = [skeleton.bone_children.index(joint) for joint in beyond]
        table[bones, limb] = _REACH_OF_ARMS if "arm" in name.lower() else 1.0
    return table


def free_lengths(skeleton: Skeleton, fixed_trunk: bool) -> Tensor:
    """(groups,): 0 for the length that keeps the scale."""
    free = torch.ones(skeleton.num_bone_length_groups)
    if fixed_trunk and skeleton.anchor_length_group is not None:
        free[skeleton.anchor_length_group] = 0.0
    return free

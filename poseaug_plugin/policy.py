"""From poses and noise to `AugmentationParameters`: at random, or learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .augmentation import (
    AugmentationParameters,
    centre_root,
    identity_parameters,
    offset_of_turns,
)
from .bones import per_bone
from .errors import PoseAugError
from .regressors import RawParameters, RegressorNetwork
from .rigid import axis_angle_to_matrix, root_relative, view_rotation
from .skeleton import Skeleton
from .skeletons import find_skeleton
from .windows import displacements, middle_frame

Operation = Literal["bone_angle", "bone_length", "rigid", "focal_length"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

Start = Literal["random", "released"]

# How far the learned residual may move a draw of the base distribution: less than the spread of
# that distribution itself, so that a batch stays diverse whatever is learned.
_DIRECTION_LIMIT = 0.1
_LENGTH_LIMIT = 0.03
_ROTATION_LIMIT = 0.15  # radians per axis
_DEPTH_LIMIT = 0.1  # of log depth
_RAY_LIMIT = 0.03  # of x/z and y/z

# What is learned on the base's spreads, as logarithms: down to a third of them, up to 1.4 times the
# default ones, and never beyond that from a base that is wide already. Wider views cost a small
# estimator more than they give, and wilder bones bend every tenth knee backwards
# (docs/experiments.md, section 7). The gain lets Adam's small steps, meant for networks, take them
# there within some hundred updates.
_MAY_NARROW = math.log(3)
_MAY_WIDEN = math.log(1.4)
_WIDENING_GAIN = 100.0
_OPERATION_OF_FACTOR: tuple[Operation, ...] = (
    "rigid",
    "rigid",
    "bone_angle",
    "bone_angle",
    "bone_length",
)

_RELEASED_LENGTH_LIMIT = 0.2
_RELEASED_ROTATION_LIMIT = 3.1415


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How widely random augmentation draws.

    Attributes:
        yaw: Turn about the vertical, uniform in +-yaw, radians; pi is every side.
        pitch: Tilt towards the camera, standard deviation in radians.
        roll: Lean in the picture, standard deviation in radians.
        depth: A pose takes the root position of another pose of the batch, times a factor drawn
            uniformly between these two.
        limb_angle: Arms and legs turn as a whole where they are attached: standard deviation per
            axis in radians.
        bone_angle: Standard deviation per coordinate of the offset added to unit bone vectors,
            every bone on its own.
        bone_length: Length ratios are uniform in +-bone_length, left and right tied.
        focal_length: The logarithm of what the focal length is multiplied by, uniform in
            +-focal_length; only with ``augment(..., return_camera=True)``. For known people seen
            through other lenses (docs/experiments.md, section 7).
    """

    yaw: float = math.pi
    pitch: float = 0.5
    roll: float = 0.2
    depth: tuple[float, float] = (0.7, 1.5)
    limb_angle: float = 0.3
    bone_angle: float = 0.075
    bone_length: float = 0.15
    focal_length: float = 0.0


class SpreadFactors(NamedTuple):
    """What the spreads of a base distribution are multiplied by."""

    pitch: Tensor | float = 1.0
    roll: Tensor | float = 1.0
    limb_angle: Tensor | float = 1.0
    bone_angle: Tensor | float = 1.0
    bone_length: Tensor | float = 1.0


class Policy(nn.Module):
    """From poses and noise to parameters, in two steps.

    `regress` runs the networks for a pose; `assemble` makes the parameters of one augmentation out
    of that and a draw of the base distribution. A policy of one's own overrides both.

    Shape:
        joints (B, T, J, 3) camera-space metres and noise (B, noise_size), standard normal, the base
        draw first -> `AugmentationParameters`. The same poses and noise give the same parameters.
    """

    base_noise_size: int
    network_noise_size: int

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that one augmentation takes."""
        return self.base_noise_size + self.network_noise_size

    def regress(self, joints: Tensor, network_noise: Tensor) -> RawParameters | None:
        """(B, T, J, 3) and (B, network_noise_size) to what `assemble` needs of the networks."""
        return None

    def assemble(
        self, joints: Tensor, base_noise: Tensor, raw: RawParameters | None
    ) -> AugmentationParameters:
        """The parameters for (B, base_noise_size) and what `regress` gave."""
        raise TypeError(f"{type(self).__name__} must define assemble(joints, base_noise, raw).")

    def entropy(self) -> Tensor | None:
        """How widely the policy draws, 0-d, in nats and up to a constant; None if that is fixed."""
        return None

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        """Both steps in one."""
        base_noise, network_noise = noise.split([self.base_noise_size, self.network_noise_size], 1)
        return self.assemble(joints, base_noise, self.regress(joints, network_noise))


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
        self._sizes = (3 * bones, self.skeleton.num_bone_length_groups, 3, 2, 3 * limbs, 1)
        self.base_noise_size, self.network_noise_size = sum(self._sizes), 0
        self.register_buffer(
            "free_bones", _free_bones(self.skeleton, fixed_trunk), persistent=False
        )
        self.register_buffer(
            "free_lengths", _free_lengths(self.skeleton, fixed_trunk), persistent=False
        )
        self.register_buffer("bones_of_limbs", _bones_of_limbs(self.skeleton), persistent=False)

    free_bones: Tensor
    free_lengths: Tensor
    bones_of_limbs: Tensor

    def assemble(
        self, joints: Tensor, base_noise: Tensor, raw: RawParameters | None = None
    ) -> AugmentationParameters:
        """Draw parameters; there is no network to listen to."""
        return self.draw(joints, base_noise, SpreadFactors())

    def draw(
        self, joints: Tensor, base_noise: Tensor, factors: SpreadFactors
    ) -> AugmentationParameters:
        """Draw from the distribution with its spreads multiplied."""
        spread, skeleton = self.spread, self.skeleton
        directions, lengths, view, place, limbs, zoom = base_noise.split(self._sizes, dim=1)
        parameters = identity_parameters(joints, skeleton)
        if "bone_angle" in self.operations:
            turns = limbs.unflatten(1, (-1, 3)) * (spread.limb_angle * factors.limb_angle)
            offset = offset_of_turns(joints, self.bones_of_limbs @ turns, skeleton)
            spread_of_offset = spread.bone_angle * factors.bone_angle
            offset = offset + directions.reshape_as(offset) * spread_of_offset
            parameters = parameters._replace(bone_direction_offset=offset * self.free_bones)
        if "bone_length" in self.operations:
            limit = spread.bone_length * factors.bone_length
            ratio = _either_way(lengths) * limit * self.free_lengths
            parameters = parameters._replace(
                bone_length_ratio=per_bone(ratio, skeleton).unsqueeze(1)
            )
        if "rigid" in self.operations:
            yaw = _either_way(view[:, 0:1]) * spread.yaw
            pitch = view[:, 1:2] * (spread.pitch * factors.pitch)
            roll = view[:, 2:3] * (spread.roll * factors.roll)
            rotation = view_rotation(yaw, pitch, roll)
            batch = joints.shape[0]
            donor = (_uniform(place[:, 0]) * batch).long().clamp(max=batch - 1)
            nearest, furthest = spread.depth
            factor = nearest + (furthest - nearest) * _uniform(place[:, 1, None, None])
            parameters = parameters._replace(
                rotation=rotation, translation=centre_root(joints, skeleton)[donor] * factor
            )
        if "focal_length" in self.operations and spread.focal_length:
            ratio = (_either_way(zoom) * spread.focal_length).exp()
            parameters = parameters._replace(focal_ratio=ratio)
        return parameters


class AugmentationPolicy(Policy):
    """The pose augmentor of PoseAug (section 3.2), for any skeleton.

    ``start="random"``: draws from `RandomPolicy`, and a network that starts at zero learns a
    bounded residual on top, so that poses are plausible and in frame from the first step and a
    batch stays diverse. ``start="released"``: the reference network (four MLPs with batch
    normalisation), its formulas and nothing else.

    Args:
        skeleton: A `Skeleton` or the name of a preset.
        start: See above.
        spread: Base distribution of ``start="random"``.
        operations: Which of ``bone_angle``, ``bone_length``, ``rigid`` and ``focal_length`` to do.
        fixed_trunk: Keep the bones between the root and the limbs' attachments unbent, and the
            anchor length unchanged, as the released code does.
        shared_extractor: One feature extractor for all regressors, as the paper has it, instead of
            four networks, as the released code does.
        width: Hidden width.

    Shape:
        joints (B, T, J, 3), noise (B, noise_size) -> `AugmentationParameters`. The networks see the
        root-relative pose of the window's middle frame and, with ``start="random"``, how the window
        moves (`windows.displacements`).
    """

    STAGES = 2
    NOISE = 48

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        start: Start = "random",
        spread: Spread | None = None,
        operations: tuple[Operation, ...] = OPERATIONS,
        fixed_trunk: bool = False,
        shared_extractor: bool = False,
        width: int = 256,
    ) -> None:
        super().__init__()
        if start not in get_args(Start):
            raise PoseAugError(
                f"AugmentationPolicy: start must be random or released, got {start!r}."
            )
        self.skeleton = skeleton = find_skeleton(skeleton)
        self.start = start
        self.operations = check_operations(operations)
        self.base = RandomPolicy(
            skeleton, spread=spread, operations=operations, fixed_trunk=fixed_trunk
        )
        branches = 1 if shared_extractor else 4
        self.network = RegressorNetwork(
            skeleton, branches, width, self.STAGES, self.NOISE, normalise=start == "released"
        )
        self.base_noise_size = self.base.base_noise_size if start == "random" else 0
        self.network_noise_size = self.network.noise_size
        if start == "random":
            self.network.start_at_zero()
            self.network.look_at_motion()
            self.widening = nn.Parameter(torch.zeros(len(SpreadFactors._fields)))
            room = torch.tensor(_room_to_widen(self.base.spread))
            self.register_buffer("room_to_widen", room, persistent=False)
            used = [float(operation in self.operations) for operation in _OPERATION_OF_FACTOR]
            self.register_buffer("used_factors", torch.tensor(used), persistent=False)

    room_to_widen: Tensor
    used_factors: Tensor

    def log_spread_factors(self) -> Tensor:
        """(5,) logarithms of the learned `SpreadFactors`, bounded."""
        raw = self.widening * _WIDENING_GAIN
        wider = self.room_to_widen * (raw / self.room_to_widen).tanh()
        narrower = _MAY_NARROW * (raw / _MAY_NARROW).tanh()
        return torch.where(raw > 0, wider, narrower)

    def spread_factors(self) -> SpreadFactors:
        """What the policy has learned to multiply the spreads of its base by."""
        return SpreadFactors(*self.log_spread_factors().exp().unbind())

    def entropy(self) -> Tensor | None:
        """Sum of the logarithms of the spreads in use; the released network has none."""
        if self.start == "released":
            return None
        return self.log_spread_factors().dot(self.used_factors)

    def regress(self, joints: Tensor, network_noise: Tensor) -> RawParameters:
        """Run the networks on the middle frame of (B, T, J, 3), and on how the window moves."""
        middle = root_relative(joints[:, middle_frame(joints.shape[1])], self.skeleton)
        motion = None
        if self.start == "random" and joints.shape[1] > 1:
            motion = displacements(root_relative(joints, self.skeleton))
        return self.network(middle, network_noise, motion)

    def assemble(
        self, joints: Tensor, base_noise: Tensor, raw: RawParameters | None
    ) -> AugmentationParameters:
        """Bound what the networks said and put it on top of the base draw."""
        assert raw is not None
        if self.start == "released":
            return self._released_parameters(joints, raw)
        base = self.base.draw(joints, base_noise, self.spread_factors())
        return self._residual_parameters(base, raw)

    def _residual_parameters(
        self, base: AugmentationParameters, raw: RawParameters
    ) -> AugmentationParameters:
        if "bone_angle" in self.operations:
            learned = (_DIRECTION_LIMIT * raw.bone_angle.tanh()).unsqueeze(1) * self.base.free_bones
            base = base._replace(bone_direction_offset=base.bone_direction_offset + learned)
        if "bone_length" in self.operations:
            learned = _LENGTH_LIMIT * (raw.bone_length * self.base.free_lengths).tanh()
            ratio = base.bone_length_ratio + per_bone(learned, self.skeleton).unsqueeze(1)
            base = base._replace(bone_length_ratio=ratio)
        if "rigid" in self.operations:
            turn = axis_angle_to_matrix(_ROTATION_LIMIT * raw.rotation.tanh()).unsqueeze(1)
            shift = raw.translation.tanh().unsqueeze(1)
            depth = base.translation[..., 2:]
            # Along rays and log depth: in front of the camera by construction.
            ray = base.translation[..., :2] / depth + _RAY_LIMIT * shift[..., :2]
            depth = depth * (_DEPTH_LIMIT * shift[..., 2:]).exp()
            base = base._replace(
                rotation=turn @ base.rotation, translation=torch.cat([ray * depth, depth], -1)
            )
        return base

    def _released_parameters(self, joints: Tensor, raw: RawParameters) -> AugmentationParameters:
        parameters = identity_parameters(joints, self.skeleton)
        if "bone_angle" in self.operations:
            offset = raw.bone_angle.unsqueeze(1) * self.base.free_bones
            parameters = parameters._replace(bone_direction_offset=offset)
        if "bone_length" in self.operations:
            ratio = _RELEASED_LENGTH_LIMIT * (raw.bone_length * self.base.free_lengths).tanh()
            parameters = parameters._replace(
                bone_length_ratio=per_bone(ratio, self.skeleton).unsqueeze(1)
            )
        if "rigid" in self.operations:
            rotation = axis_angle_to_matrix(_RELEASED_ROTATION_LIMIT * raw.rotation.tanh())
            translation = torch.cat([raw.translation[:, :2], raw.translation[:, 2:].square()], 1)
            parameters = parameters._replace(
                rotation=rotation.unsqueeze(1), translation=translation.unsqueeze(1)
            )
        return parameters


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
        own, usual = getattr(spread, name), getattr(Spread(), name)
        room = math.log(usual / own) + _MAY_WIDEN if own > 0 else _MAY_WIDEN
        rooms.append(max(room, 1e-3))
    return rooms


def _free_bones(skeleton: Skeleton, fixed_trunk: bool) -> Tensor:
    """(bones, 1): 0 for bones that must not bend."""
    free = torch.ones(skeleton.num_bones, 1)
    if fixed_trunk:
        free[list(skeleton.trunk_bones)] = 0.0
    return free


def _bones_of_limbs(skeleton: Skeleton) -> Tensor:
    """(bones, limbs): 1 for the bones that turn with a limb, beyond the joint it turns about."""
    table = torch.zeros(skeleton.num_bones, len(skeleton.limbs))
    for limb, (_, joints) in enumerate(skeleton.limbs):
        table[[skeleton.bone_children.index(joint) for joint in joints[1:]], limb] = 1.0
    return table


def _free_lengths(skeleton: Skeleton, fixed_trunk: bool) -> Tensor:
    """(groups,): 0 for the length that keeps the scale."""
    free = torch.ones(skeleton.num_bone_length_groups)
    if fixed_trunk and skeleton.anchor_length_group is not None:
        free[skeleton.anchor_length_group] = 0.0
    return free

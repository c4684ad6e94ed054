"""Policies: from poses and noise to `AugmentationParameters`, at random or with learned spreads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..body.bones import bone_directions, joints_to_bones, root_relative
from ..body.presets import find_skeleton
from ..body.rotation import turn_by, vertical, view_rotation
from ..body.skeleton import Skeleton
from ..errors import PoseAugError, check_number
from .transforms import AugmentationParameters, Policy, centre_root, middle_frame

Operation = Literal["bone_angle", "bone_length", "rigid", "focal_length"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

# Bounds of the learned factors: a spread narrows to a third at most, and widens to the default at
# most. Wider views cost more than they give, and wilder bones bend every tenth knee backwards
# (docs/experiments.md). The gain lets Adam's small steps cross this range in some hundred updates.
_MAY_NARROW = math.log(3)
_WIDENING_GAIN = 100.0
# Each multiplies the spread of its name, and those of bones that of the torso's too.
FACTORS = ("pitch", "roll", "limb_angle", "bone_angle", "bone_length")
# The operation that reads a spread, where it has another name.
_READ_BY = {"limb_angle": "bone_angle", "yaw": "rigid", "pitch": "rigid", "roll": "rigid"}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How widely random augmentation draws; angles in radians, normal ones by standard deviation.

    Attributes:
        yaw: Turn about the vertical of the batch (`rotation.vertical`), uniform in +-yaw.
        pitch: Tilt towards the camera, normal.
        roll: Lean in the picture, normal.
        depth: A pose takes the root of another of the batch, times a factor uniform in between.
        keep_view: Share of the poses that keep view and place: one hard thing at a time.
        limb_angle: Limbs turn as a whole about their hip or shoulder, normal about each axis. Arms
            (parts with "arm" in their name) reach further and turn twice as far.
        bone_angle: Offset added to the unit vector of every bone of a limb, normal per coordinate.
        torso_angle: The same for the bones of no limb: trunk, hips, shoulders, neck and head.
        bone_length: Length ratios of a limb's bones, uniform in +-bone_length, left and right tied.
        torso_length: The same for the bones of no limb. Skeletons differ there more than people.
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
        depth = self.depth
        for name, value in vars(self).items():
            if name != "depth":
                is_share = name in ("keep_view", "bone_length", "torso_length")
                check_number(f"Spread: {name}", value, 0.0, 1.0 if is_share else math.inf)
        if not isinstance(depth, (tuple, list)) or len(depth) != 2:
            raise PoseAugError(
                f"Spread: depth must be a pair of factors, (nearest, furthest), got {depth!r}."
            )
        check_number("Spread: the nearest depth", depth[0], 1e-3)
        check_number("Spread: the furthest depth", depth[1], depth[0])


class RandomPolicy(Policy):
    """Random augmentation with nothing learned: the baseline without PoseAug.

    ``operations`` are those of `OPERATIONS` to do, by default all.

    Examples:
        >>> policy = RandomPolicy("h36m_16")
        >>> joints = torch.randn(8, 1, 16, 3) + torch.tensor([0.0, 0.0, 5.0])
        >>> policy(joints, torch.randn(8, policy.noise_size)).rotation.shape
        torch.Size([8, 1, 3, 3])
    """

    spreads: tuple[str, ...]  # the field of `Spread` that says how widely each number is drawn
    columns: Tensor  # (draws,) of the noise
    widths: Tensor  # (draws,) standard deviation, or half of the range where it is uniform

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        spread: Spread | None = None,
        operations: tuple[Operation, ...] | None = None,
    ) -> None:
        super().__init__()
        self.skeleton = skeleton = find_skeleton(skeleton)
        self.spread = spread = spread or Spread()
        self.operations = check_operations(operations)
        bones, groups = skeleton.num_bones, skeleton.bone_length_groups
        limbs, reaches = zip(*_limbs_of_bones(skeleton), strict=True)
        kinds = ["bone" if reach else "torso" for reach in reaches]
        # What the noise is for: offsets, turns, pitch and roll; and what is drawn uniformly,
        # lengths, yaw, zoom, and whose place it is, how far away, and whether there is a move.
        sizes = (3 * bones, 3 * (max(limbs) + 1), 2, max(groups) + 1, 1, 1, 3)
        self.noise_size, self._num_normal = sum(sizes), sum(sizes[:3])
        offset, turn, tilt, length, yaw, zoom, _ = torch.arange(self.noise_size).split(sizes)
        turn, length = turn.view(-1, 3)[[*limbs]].flatten(), length[[*groups]]
        columns = torch.cat([offset, turn, yaw, tilt, length, zoom])
        self.register_buffer("columns", columns, persistent=False)
        self._sizes = (3 * bones, 3 * bones, 3, bones, 1)
        self.spreads = (
            *(f"{kind}_angle" for kind in kinds for _ in range(3)),
            *("limb_angle",) * (3 * bones),
            *("yaw", "pitch", "roll"),
            *(f"{kind}_length" for kind in kinds),
            "focal_length",
        )
        # An operation that is off changes nothing at a width of 0.
        widths = torch.tensor([float(getattr(spread, s) * self.reads(s)) for s in self.spreads])
        widths[3 * bones : 6 * bones] *= torch.tensor(reaches).repeat_interleave(3)
        self.register_buffer("widths", widths, persistent=False)

    def reads(self, spread: str) -> bool:
        """Whether an operation that is on reads a spread."""
        return _READ_BY.get(spread, _factor_of(spread)) in self.operations

    @override
    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        return self.draw(joints, noise, self.widths)

    def draw(
        self, joints: Tensor, noise: Tensor, widths: Tensor, strength: Tensor | float = 1.0
    ) -> AugmentationParameters:
        """Draw at these ``widths`` (draws,); at a ``strength`` of 0 every pose keeps its place."""
        skeleton, batch = self.skeleton, len(joints)
        normal, uniform = noise.tensor_split((self._num_normal,), 1)
        uniform = (uniform * math.sqrt(0.5)).erf()  # in (-1, 1)
        drawn = torch.cat([normal, uniform], 1).index_select(1, self.columns) * widths
        offset, turn, angles, ratio, zoom = drawn.split(self._sizes, 1)
        whose, how_far, moves = uniform[:, -3:].unbind(1)
        middle = joints[:, middle_frame(joints.shape[1])]
        bones = bone_directions(joints_to_bones(middle, skeleton))
        offset = offset.view_as(bones) + turn_by(turn.view_as(bones), bones)
        keep_view = self.spread.keep_view if "rigid" in self.operations else 1.0
        moves = (moves > 2 * keep_view - 1).to(noise.dtype)
        axis = vertical(root_relative(middle, skeleton))
        rotation = view_rotation(angles * moves.unsqueeze(1), axis)
        donor = ((1 + whose) * (batch / 2)).long().clamp(max=batch - 1)
        nearest, furthest = self.spread.depth
        factor = (furthest + nearest) / 2 + (furthest - nearest) / 2 * how_far
        place = centre_root(joints, skeleton)
        elsewhere = place.index_select(0, donor) * factor.view(-1, 1, 1)
        # Exact at both ends: at a strength of 1 the distance to the own place is not taken.
        place = torch.lerp(place, elsewhere, (moves * strength).view(-1, 1, 1))
        return AugmentationParameters(
            offset.unsqueeze(1), ratio.unsqueeze(1), rotation.unsqueeze(1), place, zoom.exp()
        )


class AugmentationPolicy(RandomPolicy):
    """The learned policy: random augmentation whose spreads are learned.

    It starts as `RandomPolicy`, so poses are plausible from the first step, and a batch stays
    diverse whatever is learned. Critics narrow its spreads, entropy widens them again, and the
    estimator's error sets the strength of all. PoseAug's own networks are `reference.regressors`.
    Arguments and shapes are those of `RandomPolicy`; ``spread`` is that of the beginning.
    """

    room_to_widen: Tensor  # (5,) logarithms
    used_factors: Tensor  # (5,) 1 where an operation reads it
    factor_of_draw: Tensor  # (draws, 5) 1 where a factor multiplies a width
    strength: Tensor  # 0-d, in [0, 1]; the hook's feedback sets it and keeps it

    def __init__(
        self,
        skeleton: Skeleton | str,
        *,
        spread: Spread | None = None,
        operations: tuple[Operation, ...] | None = None,
    ) -> None:
        super().__init__(skeleton, spread=spread, operations=operations)
        self.widening = nn.Parameter(torch.zeros(len(FACTORS)))
        room = [_room_to_widen(self.spread, name) for name in FACTORS]
        used = [float(self.reads(name)) for name in FACTORS]
        of_draw = [[float(_factor_of(s) == name) for name in FACTORS] for s in self.spreads]
        buffers = {"room_to_widen": room, "used_factors": used, "factor_of_draw": of_draw}
        for name, values in {**buffers, "strength": 1.0}.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def log_spread_factors(self) -> Tensor:
        """(5,) logarithms of the learned factors (`FACTORS`), bounded."""
        raw = self.widening * _WIDENING_GAIN
        bound = self.room_to_widen.where(raw > 0, _MAY_NARROW)
        return bound * (raw / bound).tanh()

    def spread_factors(self) -> dict[str, Tensor]:
        """The learned factors by name, each 0-d."""
        return dict(zip(FACTORS, self.log_spread_factors().exp(), strict=True))

    def changes(self) -> Iterator[str]:
        """Spreads that are no longer those of the beginning, by more than 5 %; reads the device."""
        if self.strength < 1:
            yield f"all spreads x {self.strength:.2f} (strength)"
        for name, factor in self.spread_factors().items():
            if abs(factor.log()) > 0.05:
                yield f"{name} x {factor:.2f}"

    @override
    def entropy(self) -> Tensor:
        return self.log_spread_factors().dot(self.used_factors)

    @override
    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        factors = (self.factor_of_draw @ self.log_spread_factors()).exp()
        return self.draw(joints, noise, self.widths * factors * self.strength, self.strength)


def check_operations(operations: object) -> tuple[Operation, ...]:
    """The operations as a tuple, all for None; `PoseAugError` for what is none of `OPERATIONS`."""
    if operations is None:
        return OPERATIONS
    if isinstance(operations, (tuple, list)) and all(o in OPERATIONS for o in operations):
        return tuple(operations)
    raise PoseAugError(f"operations must be a tuple out of {OPERATIONS}, got {operations!r}.")


def _factor_of(spread: str) -> str:
    return spread.replace("torso", "bone")


def _room_to_widen(spread: Spread, factor: str) -> float:
    """Logarithm of how many times the spreads of this factor may grow."""
    names = [name for name in vars(spread) if _factor_of(name) == factor]
    pairs = [(getattr(spread, name), getattr(Spread(), name)) for name in names]
    room = min((math.log(default / own) for own, default in pairs if own > 0), default=0.0)
    return max(room, 1e-3)  # it divides


def _limbs_of_bones(skeleton: Skeleton) -> list[tuple[int, float]]:
    """With which limb every bone turns about its hip or shoulder, and how far: 0 with none."""
    found = [(0, 0.0)] * skeleton.num_bones
    for limb, (name, joints) in enumerate(skeleton.limbs):
        # Hip or shoulder comes first, or is what an elbow or a knee hangs from (COCO).
        for joint in joints[1:] if len(joints) > 2 else joints:
            # Arms reach further than legs, which carry the body.
            reach = 2.0 if "arm" in name.lower() else 1.0
            found[skeleton.bone_children.index(joint)] = limb, reach
    return found

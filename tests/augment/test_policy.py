"""Policies of every kind: what they draw, and what they learn on top of it."""

from __future__ import annotations

import copy
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from helpers import agree, bent_joints
from policies import (
    REGRESSORS,
    build,
    drawn,
    each_kind,
    each_learned_kind,
    each_preset,
    poses,
    same,
    taught,
    weighted_sum,
)
from random_bodies import normal
from torch import Tensor, nn

from poseaug_plugin.augment.policy import (
    OPERATIONS,
    AugmentationPolicy,
    Policy,
    RandomPolicy,
    Spread,
)
from poseaug_plugin.augment.transforms import (
    AugmentationParameters,
    apply_augmentation,
    identity_parameters,
)
from poseaug_plugin.body.bones import bone_directions, joints_to_bones, root_relative
from poseaug_plugin.body.presets import COCO_17, H36M_16
from poseaug_plugin.body.rotation import vertical
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.errors import PoseAugError
from poseaug_plugin.reference.regressors import RegressorPolicy

# Where an operation's outcome stands in `AugmentationParameters`.
FIELDS = {
    "bone_angle": ("bone_direction_offset",),
    "bone_length": ("bone_length_ratio",),
    "rigid": ("rotation", "translation"),
    "focal_length": ("focal_ratio",),
}


def fields_of(operation: str, kind: str) -> tuple[str, ...]:
    """What it changes; the regressors know nothing of focal lengths."""
    return () if kind in REGRESSORS and operation == "focal_length" else FIELDS[operation]


# -- every policy ----------------------------------------------------------------------------------


@each_kind
def test_the_same_noise_gives_the_same_parameters(kind: str) -> None:
    policy, joints = build(kind), poses()
    state = torch.get_rng_state()
    assert same(drawn(policy, joints), drawn(policy, joints))
    assert torch.equal(torch.get_rng_state(), state)


@each_kind
@pytest.mark.parametrize("field", AugmentationParameters._fields)
def test_other_noise_gives_other_parameters(kind: str, field: str) -> None:
    policy, joints = build(kind), poses()
    if field == "focal_ratio" and kind in REGRESSORS:
        pytest.skip("no part of the regressors")
    one, other = (getattr(drawn(policy, joints, seed), field) for seed in (1, 2))
    assert (one != other).flatten(1).any(1).all()


@each_kind
@pytest.mark.parametrize("frames", [1, 9])
@each_preset
def test_every_skeleton_and_window(skeleton: Skeleton, frames: int, kind: str) -> None:
    joints = poses(3, frames, skeleton)
    parameters = drawn(build(kind, skeleton), joints)
    assert parameters.bone_direction_offset.shape == (3, 1, skeleton.num_bones, 3)
    assert parameters.bone_length_ratio.shape == (3, 1, skeleton.num_bones)
    assert parameters.rotation.shape == (3, 1, 3, 3)
    assert parameters.translation.shape == (3, 1, 3)
    for stage in apply_augmentation(joints, parameters, skeleton):
        assert stage.shape == joints.shape
        assert stage.isfinite().all()


@each_kind
def test_a_batch_of_one(kind: str) -> None:
    policy, joints = build(kind).eval(), poses(1)
    moved = apply_augmentation(joints, drawn(policy, joints), H36M_16).moved
    assert moved.isfinite().all()


@each_kind
def test_lengths_stay_positive_and_tied(kind: str) -> None:
    joints = poses(50)
    ratios = drawn(build(kind), joints).bone_length_ratio[:, 0]
    assert (ratios > -1).all()
    children, flip = H36M_16.bone_children, H36M_16.flip_permutation
    agree(ratios[:, [children.index(flip[child]) for child in children]], ratios)


@each_kind
def test_rotations_are_rotations(kind: str) -> None:
    rotation = drawn(build(kind), poses()).rotation
    agree(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand_as(rotation), 1e-12)
    agree(torch.linalg.det(rotation), torch.ones_like(rotation[..., 0, 0]), 1e-12)


@each_kind
def test_only_the_middle_frame_counts(kind: str) -> None:
    policy, joints = build(kind), poses(frames=9)
    other = joints + normal(*joints.shape)
    other[:, 4] = joints[:, 4]
    assert same(drawn(policy, joints), drawn(policy, other))


@each_kind
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_that_is_off_changes_nothing(kind: str, operation: str) -> None:
    joints = poses()
    operations = tuple(o for o in OPERATIONS if o != operation)
    parameters = drawn(build(kind, operations=operations), joints)
    identity = identity_parameters(joints, H36M_16)
    for field in fields_of(operation, kind):
        assert torch.equal(getattr(parameters, field), getattr(identity, field))


@each_kind
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_alone_changes_its_own_part_only(kind: str, operation: str) -> None:
    joints = poses()
    parameters = drawn(build(kind, operations=(operation,)), joints)
    alone, identity = parameters._asdict(), identity_parameters(joints, H36M_16)._asdict()
    changed = {name for name in alone if not torch.equal(alone[name], identity[name])}
    assert changed == set(fields_of(operation, kind))


@each_kind
def test_an_operation_does_not_depend_on_the_others(kind: str) -> None:
    joints = poses()
    everything = drawn(build(kind), joints)
    for operation in OPERATIONS:
        alone = drawn(build(kind, operations=(operation,)), joints)
        for field in fields_of(operation, kind):
            assert torch.equal(getattr(alone, field), getattr(everything, field))


@pytest.mark.parametrize("kind", ["unlearned", "learned"])
def test_the_root_stays_in_front_of_the_camera(kind: str) -> None:
    policy, joints = build(kind), poses(200)
    if kind == "learned":
        taught(policy, 1e3)
    noise = 3 * normal(200, policy.noise_size)
    depths = policy(joints, noise).translation[..., 2]
    nearest = joints[:, 0, H36M_16.root, 2].min() * Spread().depth[0]
    assert (depths > 0.7 * nearest).all()


@pytest.mark.parametrize("policy", [RandomPolicy, AugmentationPolicy, RegressorPolicy])
@pytest.mark.parametrize("operations", [("bend",), ("rigid", "bend"), "rigid"])
def test_unknown_operations_are_refused(policy: type[Policy], operations: object) -> None:
    with pytest.raises(PoseAugError, match=r"operations must be .*bone_angle.*bone_length.*rigid"):
        policy(H36M_16, operations=operations)


# -- random draws ----------------------------------------------------------------------------------


STILL = Spread(
    **{"yaw": 0, "pitch": 0, "roll": 0, "depth": (1, 1), "keep_view": 0},
    **{"limb_angle": 0, "bone_angle": 0, "torso_angle": 0, "bone_length": 0, "torso_length": 0},
)


def turned_only_by(**spread: float) -> Tensor:
    """Rotations (4000, 3, 3) of a policy that turns in one way."""
    policy = RandomPolicy(H36M_16, spread=Spread(**{**vars(STILL), **spread})).double()
    return drawn(policy, poses(1).expand(4000, -1, -1, -1)).rotation[:, 0]


def test_focal_lengths_are_uniform_on_a_log_scale() -> None:
    policy = RandomPolicy(H36M_16, spread=Spread(focal_length=0.4)).double()
    logs = drawn(policy, poses(4000)).focal_ratio.log()
    assert logs.abs().max() <= 0.4
    assert logs.mean().item() == pytest.approx(0, abs=0.02)
    assert logs.std().item() == pytest.approx(0.4 / 3**0.5, rel=0.05)


# The ends of a limb's two bones.
LIMBS = {"arm": ("elbow", "wrist"), "leg": ("knee", "ankle")}


@pytest.mark.parametrize("skeleton", [H36M_16, COCO_17], ids=["h36m_16", "coco_17"])
def test_limbs_turn_as_a_whole_and_arms_twice_as_far(skeleton: Skeleton) -> None:
    joints = poses(4000, skeleton=skeleton)
    spread = Spread(**{**vars(STILL), "limb_angle": 0.2})
    policy = RandomPolicy(skeleton, spread=spread).double()
    bent = bent_joints(joints, drawn(policy, joints).bone_direction_offset, skeleton)
    before, after = (bone_directions(joints_to_bones(x, skeleton))[:, 0] for x in (joints, bent))
    others = set(range(skeleton.num_bones))
    for side, limb in itertools.product(("left", "right"), LIMBS):
        upper, lower = (
            skeleton.bone_children.index(skeleton.joints.index(f"{side}_{end}"))
            for end in LIMBS[limb]
        )
        others -= {upper, lower}
        elbow = [(x[:, upper] * x[:, lower]).sum(-1) for x in (before, after)]  # or knee
        agree(elbow[1], elbow[0])
        # A turn about a random axis moves a bone by its two components across.
        angle = (before[:, upper] * after[:, upper]).sum(-1).clamp(-1, 1).acos()
        expected = (0.4 if limb == "arm" else 0.2) * 2**0.5
        assert angle.square().mean().sqrt().item() == pytest.approx(expected, rel=0.06)
    agree(after[:, sorted(others)], before[:, sorted(others)])


@pytest.mark.parametrize("kind", ["unlearned", "learned"])
def test_a_share_keeps_its_keep_view_and_place(kind: str) -> None:
    joints = poses(4000)
    parameters = drawn(build(kind, spread=Spread(keep_view=0.3)), joints)
    unturned = (parameters.rotation == torch.eye(3)).flatten(1).all(1)
    moved_by = (parameters.translation[:, 0] - joints[:, 0, H36M_16.root]).abs().amax(1)
    unmoved = moved_by < 1e-12
    assert torch.equal(unturned, unmoved)
    assert unturned.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert (parameters.bone_direction_offset[unturned] != 0).all()
    assert (parameters.bone_length_ratio[unturned] != 0).all()


def test_without_spread_poses_are_only_put_where_others_stood() -> None:
    joints = poses(50)
    parameters = drawn(RandomPolicy(H36M_16, spread=STILL).double(), joints)
    identity = identity_parameters(joints, H36M_16)
    for field in ("bone_direction_offset", "bone_length_ratio", "rotation"):
        assert torch.equal(getattr(parameters, field), getattr(identity, field))
    roots = joints[:, 0, H36M_16.root]
    distances = torch.cdist(parameters.translation[:, 0], roots)
    assert (distances.min(1).values < 1e-6).all()
    assert len(set(distances.argmin(1).tolist())) > 10


def test_roots_come_from_the_batch_and_move_along_their_ray() -> None:
    joints, spread = poses(50), Spread(depth=(0.5, 3.0), keep_view=0)
    places = drawn(RandomPolicy(H36M_16, spread=spread).double(), joints).translation[:, 0]
    factors = places[:, None] / joints[:, 0, H36M_16.root]  # (B, donors, 3)
    of_donor = (factors - factors[..., :1]).abs().amax(-1) < 1e-9
    assert of_donor.any(1).all()
    taken = factors[of_donor][:, 0]
    assert taken.min() >= 0.5
    assert taken.max() <= 3.0
    assert taken.max() - taken.min() > 2.0


def test_whose_place_how_far_and_who_moves_are_drawn_apart() -> None:
    joints, spread = poses(1000), Spread(depth=(0.5, 3.0), keep_view=0.3)
    parameters = drawn(RandomPolicy(H36M_16, spread=spread).double(), joints)
    moved = (parameters.rotation != torch.eye(3)).flatten(1).any(1)
    factors = parameters.translation[moved, :1] / joints[:, 0, H36M_16.root]  # (B, donors, 3)
    donor = (factors - factors[..., :1]).abs().amax(-1).argmin(1)
    how_far = (factors[torch.arange(len(donor)), donor, 0] - 0.5) / 2.5
    drawn_from = torch.stack([donor / len(joints), how_far])
    # Of 700 uniform ones, up to five standard deviations.
    agree(drawn_from.mean(1), torch.full((2,), 0.5), 0.055)
    assert abs(drawn_from.corrcoef()[0, 1].item()) < 0.19


def test_turns_are_uniform_about_the_vertical_that_the_batch_stands_on() -> None:
    turns = turned_only_by(yaw=1.2)
    axis = vertical(root_relative(poses(1)[:, 0], H36M_16))
    assert axis[1] < 0.99
    agree(turns @ axis, axis.expand(4000, 3), 1e-12)
    # As its sine and cosine in the plane about the axis.
    sines = torch.stack(
        [(turns[:, j, i] - turns[:, i, j]) / 2 for i, j in ((1, 2), (2, 0), (0, 1))]
    )
    cosines = (turns.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angles = torch.atan2(axis @ sines, cosines)
    assert angles.abs().max() <= 1.2
    # Uniform in +-1.2: an eighth of it in every eighth, up to five standard deviations.
    counts = torch.histc(angles, bins=8, min=-1.2, max=1.2)
    assert ((counts - 500).abs() < 5 * math.sqrt(4000 / 8 * 7 / 8)).all()


@pytest.mark.parametrize(("which", "axis"), [("pitch", 0), ("roll", 2)])
def test_tilt_and_lean_are_normal_about_their_axis(which: str, axis: int) -> None:
    turns = turned_only_by(**{which: 0.2})
    fixed = torch.eye(3, dtype=torch.float64)[axis]
    agree(turns @ fixed, fixed.expand(4000, 3), 1e-12)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    angles = torch.atan2(turns[:, j, i], turns[:, i, i])
    assert angles.std().item() == pytest.approx(0.2, rel=0.1)
    assert abs(angles.mean().item()) < 5 * 0.2 / math.sqrt(4000)


@pytest.mark.parametrize("skeleton", [H36M_16, COCO_17], ids=["h36m_16", "coco_17"])
def test_offsets_are_normal_and_lengths_uniform(skeleton: Skeleton) -> None:
    of_limb = {"bone_angle": 0.3, "bone_length": 0.25}
    spread = Spread(limb_angle=0, torso_angle=0.1, torso_length=0.4, **of_limb)
    parameters = drawn(
        RandomPolicy(skeleton, spread=spread).double(), poses(2000, skeleton=skeleton)
    )
    offsets, ratios = parameters.bone_direction_offset[:, 0], parameters.bone_length_ratio
    ends = {end for limb in LIMBS.values() for end in limb}
    of_limbs = [skeleton.joints[j].split("_")[-1] in ends for j in skeleton.bone_children]
    assert sum(of_limbs) == 8
    for bone, in_limb in enumerate(of_limbs):
        angle, length = (0.3, 0.25) if in_limb else (0.1, 0.4)
        assert offsets[:, bone].std().item() == pytest.approx(angle, rel=0.05)
        ratio = ratios[:, 0, bone]
        assert ratio.abs().max() <= length
        assert ratio.std().item() == pytest.approx(length / math.sqrt(3), rel=0.05)


# -- learned on top of random draws ----------------------------------------------------------------


def test_the_page_of_presets_has_the_default_spreads() -> None:
    page = (Path(__file__).parents[2] / "docs/presets.md").read_text(encoding="utf-8")
    told: dict[str, float] = {}
    for row in page.splitlines():
        names = re.findall(r"`Spread\.(\w+)`", row)
        values = row.rstrip(" |").split("|")[-1].replace("⅓", str(1 / 3)).split(",")
        told |= zip(names, map(float, values), strict=True) if names else {}
    assert {"bone_angle", "torso_angle", "bone_length", "torso_length", "keep_view"} <= set(told)
    assert told == pytest.approx({name: getattr(Spread(), name) for name in told})


def test_a_policy_starts_at_its_base_distribution() -> None:
    spread = Spread(yaw=1.0, pitch=0.1, bone_angle=0.2)
    policy = AugmentationPolicy(H36M_16, spread=spread).double()
    base, joints = RandomPolicy(H36M_16, spread=spread).double(), poses()
    assert same(drawn(policy, joints), drawn(base, joints))


def test_a_policy_at_its_start_can_learn_from_its_first_step() -> None:
    policy = AugmentationPolicy(H36M_16).double()
    (slopes,) = torch.autograd.grad(weighted_sum(drawn(policy, poses())), policy.widening)
    assert (slopes != 0).all()


def test_a_batch_stays_diverse_whatever_is_learned() -> None:
    policy, joints = AugmentationPolicy(H36M_16).double(), poses(1).expand(200, -1, -1, -1)
    with torch.no_grad():
        policy.widening.fill_(-1e3)
    narrow, base = drawn(policy, joints), drawn(RandomPolicy(H36M_16).double(), joints)
    for field in ("bone_direction_offset", "bone_length_ratio", "rotation"):
        diversity, usual = (getattr(p, field).std(0).mean() for p in (narrow, base))
        assert diversity > 0.3 * usual


@each_learned_kind
@each_preset
def test_gradients_reach_every_parameter(skeleton: Skeleton, kind: str) -> None:
    # In eval mode: batch statistics take away whatever the bias before them adds.
    policy, joints = build(kind, skeleton), poses(skeleton=skeleton)
    moved = apply_augmentation(joints, drawn(policy, joints), skeleton).moved
    names, parameters = zip(*policy.named_parameters(), strict=True)
    slopes = torch.autograd.grad((moved * normal(*moved.shape)).sum(), parameters)
    for name, slope in zip(names, slopes, strict=True):
        assert slope.isfinite().all()
        # Layers of several networks are one parameter: each must get its share.
        assert (slope.flatten(1) != 0).any(1).all() if slope.dim() > 1 else slope.any(), name


@each_learned_kind
def test_gradients_reach_the_poses(kind: str) -> None:
    policy, joints = build(kind), poses().requires_grad_()
    (slopes,) = torch.autograd.grad(weighted_sum(drawn(policy, joints)), joints)
    assert slopes.isfinite().all()
    assert (slopes != 0).flatten(1).any(1).all()


@each_kind
def test_policies_survive_a_copy_and_their_state(kind: str) -> None:
    policy, joints = build(kind), poses()
    with torch.random.fork_rng():
        fresh = copy.deepcopy(policy)
        for parameter in fresh.parameters():
            nn.init.normal_(parameter)
    fresh.load_state_dict(policy.state_dict())
    assert same(drawn(fresh, joints), drawn(policy, joints))

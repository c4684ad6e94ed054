"""What draws and judges augmentations: policies, critics, hardness and the pool of fakes."""

from __future__ import annotations

import copy
import io
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import agree, bent_joints, human_poses, scaled_joints
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from poseaug_plugin.augmentation import (
    AugmentationParameters,
    apply_augmentation,
    bone_angle_change,
    identity_parameters,
)
from poseaug_plugin.bones import bone_directions, joints_to_bones
from poseaug_plugin.discriminators import KeypointDiscriminator, PartKCSDiscriminator
from poseaug_plugin.errors import PoseAugError
from poseaug_plugin.grouped import GroupedLinear
from poseaug_plugin.hardness import HardnessPredictor
from poseaug_plugin.policy import OPERATIONS, AugmentationPolicy, Policy, RandomPolicy, Spread
from poseaug_plugin.pool import FakePosePool
from poseaug_plugin.regressor_policy import RegressorPolicy
from poseaug_plugin.regressors import RegressorNetwork
from poseaug_plugin.rigid import root_relative, transform_rigidly, vertical
from poseaug_plugin.skeleton import Skeleton
from poseaug_plugin.skeletons import COCO_17, H36M_16, SKELETONS

each_preset = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)

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


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def poses(batch: int = 6, frames: int = 1, skeleton: Skeleton = H36M_16) -> Tensor:
    return human_poses(batch, frames, skeleton, generator())


def taught(policy: Policy, scale: float = 1.0) -> Policy:
    """The policy as if it had learned something: factors, or last layers, of some size."""
    drawing = isinstance(policy, AugmentationPolicy)
    learned = [policy.widening] if drawing else policy.network.heads.parameters()
    with torch.no_grad():
        for i, parameter in enumerate(learned):
            parameter.copy_((0.01 if drawing else 1) * scale * normal(*parameter.shape, seed=i))
    return policy


def build(kind: str, skeleton: Skeleton = H36M_16, **options: object) -> Policy:
    """A policy in float64: drawing only, learned, or regressors with one extractor or four."""
    if kind not in REGRESSORS:
        options.setdefault("spread", Spread(focal_length=0.5, own_view=0))
    if kind == "unlearned":
        return RandomPolicy(skeleton, **options).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy: Policy
        if kind == "learned":
            policy = AugmentationPolicy(skeleton, **options)
        else:
            policy = RegressorPolicy(
                skeleton, shared_extractor=REGRESSORS[kind], width=8, **options
            )
    return taught(policy.double()).eval()


REGRESSORS = {"regressors": False, "one extractor": True}  # whether they share it

each_kind = pytest.mark.parametrize("kind", ["unlearned", "learned", *REGRESSORS])
each_learned_kind = pytest.mark.parametrize("kind", ["learned", *REGRESSORS])
each_regressor_kind = pytest.mark.parametrize("kind", REGRESSORS)


def drawn(policy: Policy, joints: Tensor, seed: int = 1) -> AugmentationParameters:
    return policy(joints, normal(len(joints), policy.noise_size, seed=seed))


def same(one: AugmentationParameters, other: AugmentationParameters) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


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


@each_kind
@each_preset
def test_a_fixed_trunk_is_not_bent(skeleton: Skeleton, kind: str) -> None:
    joints = poses(skeleton=skeleton)
    parameters = drawn(build(kind, skeleton, fixed_trunk=True), joints)
    bent = apply_augmentation(joints, parameters, skeleton).bent
    turned = bone_angle_change(joints, bent, skeleton)[:, 0]
    trunk = torch.zeros(skeleton.num_bones, dtype=torch.bool)
    trunk[list(skeleton.trunk_bones)] = True
    assert turned[:, trunk].abs().max() < 1e-12
    assert (turned[:, ~trunk] > 1e-9).all()


@each_kind
def test_a_fixed_trunk_keeps_the_anchor_length(kind: str) -> None:
    ratios = drawn(build(kind, fixed_trunk=True), poses()).bone_length_ratio[:, 0]
    anchor = torch.tensor(H36M_16.bone_length_groups) == H36M_16.anchor_length_group
    assert (ratios[:, anchor] == 0).all()
    assert (ratios[:, ~anchor] != 0).all()


@pytest.mark.parametrize("kind", ["unlearned", "learned"])
def test_the_root_stays_in_front_of_the_camera(kind: str) -> None:
    policy, joints = build(kind), poses(200)
    if kind == "learned":
        taught(policy, 1e3)
    noise = 3 * normal(200, policy.noise_size)
    depths = policy(joints, noise).translation[..., 2]
    nearest = joints[:, 0, H36M_16.root, 2].min() * Spread().depth[0]
    assert (depths > 0.7 * nearest).all()


@each_regressor_kind
def test_the_regressed_root_is_not_behind_the_camera(kind: str) -> None:
    policy = taught(build(kind), 10.0)
    assert (drawn(policy, poses(200)).translation[..., 2] >= 0).all()


@pytest.mark.parametrize("policy", [RandomPolicy, AugmentationPolicy, RegressorPolicy])
@pytest.mark.parametrize("operations", [("bend",), ("rigid", "bend"), "rigid"])
def test_unknown_operations_are_refused(policy: type[Policy], operations: object) -> None:
    with pytest.raises(PoseAugError, match=r"operations must be .*bone_angle.*bone_length.*rigid"):
        policy(H36M_16, operations=operations)


# -- random draws ----------------------------------------------------------------------------------

STILL = Spread(
    **{"yaw": 0, "pitch": 0, "roll": 0, "depth": (1, 1), "own_view": 0},
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
def test_a_share_keeps_its_own_view_and_place(kind: str) -> None:
    joints = poses(4000)
    parameters = drawn(build(kind, spread=Spread(own_view=0.3)), joints)
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
    joints, spread = poses(50), Spread(depth=(0.5, 3.0), own_view=0)
    places = drawn(RandomPolicy(H36M_16, spread=spread).double(), joints).translation[:, 0]
    factors = places[:, None] / joints[:, 0, H36M_16.root]  # (B, donors, 3)
    of_donor = (factors - factors[..., :1]).abs().amax(-1) < 1e-9
    assert of_donor.any(1).all()
    taken = factors[of_donor][:, 0]
    assert taken.min() >= 0.5
    assert taken.max() <= 3.0
    assert taken.max() - taken.min() > 2.0


def test_whose_place_how_far_and_who_moves_are_drawn_apart() -> None:
    joints, spread = poses(1000), Spread(depth=(0.5, 3.0), own_view=0.3)
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
    page = (Path(__file__).parents[1] / "docs/presets.md").read_text(encoding="utf-8")
    told: dict[str, float] = {}
    for row in page.splitlines():
        names = re.findall(r"`Spread\.(\w+)`", row)
        values = row.rstrip(" |").split("|")[-1].replace("⅓", str(1 / 3)).split(",")
        told |= zip(names, map(float, values), strict=True) if names else {}
    assert {"bone_angle", "torso_angle", "bone_length", "torso_length", "own_view"} <= set(told)
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
    narrow, base = drawn(policy, joints), drawn(policy.base, joints)
    for field in ("bone_direction_offset", "bone_length_ratio", "rotation"):
        diversity, usual = (getattr(p, field).std(0).mean() for p in (narrow, base))
        assert diversity > 0.3 * usual


@each_regressor_kind
def test_the_networks_see_root_relative_poses(kind: str) -> None:
    policy, joints = build(kind), poses()
    noise = normal(6, policy.network.noise_size)
    here, there = (policy.regress(j, noise) for j in (joints, joints + normal(6, 1, 1, 3)))
    for one, other in zip(here, there, strict=True):
        agree(other, one)


def test_one_extractor_instead_of_four() -> None:
    four, one = build("regressors"), build("one extractor")
    assert one.noise_size * 4 == four.noise_size
    assert one.network.inputs.weight.shape[0] == 1
    assert four.network.inputs.weight.shape[0] == 4


def test_branches_do_not_share_noise() -> None:
    policy = build("regressors")
    noise = normal(6, 4, RegressorNetwork.NOISE)
    before = policy.regress(poses(), noise.flatten(1))
    for branch in range(4):
        other = noise.clone()
        other[:, branch] = normal(6, RegressorNetwork.NOISE, seed=9)
        after = policy.regress(poses(), other.flatten(1))
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == [branch == i for i in range(4)]


def weighted_sum(parameters: AugmentationParameters) -> Tensor:
    return sum((p * normal(*p.shape, seed=i)).sum() for i, p in enumerate(parameters))


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


def test_grouped_layers_are_separate_layers() -> None:
    grouped, x = GroupedLinear(3, 4, 5).double(), normal(7, 3, 4)
    expected = [nn.functional.linear(x[:, g], grouped.weight[g], grouped.bias[g]) for g in range(3)]
    agree(grouped(x).detach(), torch.stack(expected, 1).detach())


def test_grouped_layers_start_each_on_its_own() -> None:
    weight = GroupedLinear(2, 4, 5).weight
    assert not torch.equal(weight[0], weight[1])
    assert weight.abs().max() <= 1 / math.sqrt(4)


# -- critics ---------------------------------------------------------------------------------------

SCOPES = ("parts", "whole")
each_scope = pytest.mark.parametrize("scope", SCOPES)


def kcs_critic(skeleton: Skeleton = H36M_16, scope: str = "parts") -> PartKCSDiscriminator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PartKCSDiscriminator(skeleton, scope=scope, width=16).double()


def turned(joints: Tensor) -> Tensor:
    q = torch.linalg.qr(normal(len(joints), 3, 3)).Q
    origin = joints.new_zeros(len(joints), 3)
    return transform_rigidly(joints, q * torch.linalg.det(q)[:, None, None], origin, origin)


UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "viewpoint": turned,
    "place": lambda x: x + normal(len(x), 1, 3),
    "size": lambda x: 2.5 * x,
    "bone lengths": lambda x: scaled_joints(x, 0.4 * normal(len(x), 15).tanh(), H36M_16),
}


@each_scope
@pytest.mark.parametrize("change", UNSEEN)
def test_the_3d_critic_sees_angles_only(change: str, scope: str) -> None:
    critic, joints = kcs_critic(scope=scope), poses()[:, 0]
    agree(critic(UNSEEN[change](joints)), critic(joints).detach())


@each_scope
@each_preset
def test_one_score_per_part_or_one_for_all(skeleton: Skeleton, scope: str) -> None:
    scores = kcs_critic(skeleton, scope)(poses(skeleton=skeleton)[:, 0])
    assert scores.shape == (6, len(skeleton.part_bones) if scope == "parts" else 1)


@each_preset
def test_each_part_critic_sees_its_own_bones_only(skeleton: Skeleton) -> None:
    critic, joints = kcs_critic(skeleton), poses(skeleton=skeleton)
    before = critic(joints[:, 0])
    for bone in range(skeleton.num_bones):
        offset = torch.zeros(6, 1, skeleton.num_bones, 3, dtype=torch.float64)
        offset[:, :, bone] = normal(6, 1, 3)
        after = critic(bent_joints(joints, offset, skeleton)[:, 0])
        changed = ((after - before).abs() > 1e-9).all(0).tolist()
        assert changed == [bone in bones for _, bones in skeleton.part_bones]
        untouched = [bone not in bones for _, bones in skeleton.part_bones]
        agree(after[:, untouched], before[:, untouched].detach())


@each_preset
def test_the_whole_body_critic_sees_every_bone(skeleton: Skeleton) -> None:
    critic, joints = kcs_critic(skeleton, "whole"), poses(skeleton=skeleton)
    offset = torch.zeros(6, 1, skeleton.num_bones, 3, dtype=torch.float64, requires_grad=True)
    bent = bent_joints(joints, offset, skeleton)
    (slopes,) = torch.autograd.grad(critic(bent[:, 0]).sum(), offset)
    assert (slopes.norm(dim=-1) > 1e-12).all()


@each_scope
def test_the_3d_critic_judges_samples_one_by_one(scope: str) -> None:
    critic, joints = kcs_critic(scope=scope), poses()[:, 0]
    agree(torch.cat([critic(pose[None]) for pose in joints]), critic(joints).detach())


@each_scope
def test_gradients_reach_every_parameter_of_the_3d_critic(scope: str) -> None:
    critic = kcs_critic(scope=scope)
    critic(poses()[:, 0]).square().sum().backward()
    for parameter in critic.parameters():
        assert parameter.grad is not None
        assert (parameter.grad.flatten(1) != 0).any(1).all()


@each_preset
def test_the_2d_critic_sees_every_coordinate(skeleton: Skeleton) -> None:
    critic = KeypointDiscriminator(skeleton, width=16).double()
    keypoints = normal(6, skeleton.num_joints, 2).requires_grad_()
    scores = critic(keypoints)
    assert scores.shape == (6, 1)
    (slopes,) = torch.autograd.grad(scores.sum(), keypoints)
    assert (slopes != 0).all()


def test_gradients_reach_every_parameter_of_the_2d_critic() -> None:
    critic = KeypointDiscriminator(H36M_16, width=16).double()
    critic(normal(6, 16, 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in critic.parameters())


# -- hardness --------------------------------------------------------------------------------------


@each_preset
def test_the_predictor_gives_one_number_per_pose(skeleton: Skeleton) -> None:
    predictor = HardnessPredictor(skeleton, width=16).double()
    joints = poses(skeleton=skeleton)[:, 0].requires_grad_()
    keypoints = normal(6, 1, skeleton.num_joints, 2).requires_grad_()
    scores = predictor(keypoints, joints)
    assert scores.shape == (6,)
    # Through it the feedback's gradient flows: into the picture and into every joint.
    for slopes in torch.autograd.grad(scores.sum(), (keypoints, joints)):
        assert (slopes != 0).all()


def test_the_predictor_sees_where_a_pose_stands() -> None:
    predictor = HardnessPredictor(H36M_16, width=16).double()
    joints, keypoints = poses()[:, 0], normal(6, 1, 16, 2)
    assert (predictor(keypoints, joints) != predictor(keypoints, joints + 1)).all()


# -- pool ------------------------------------------------------------------------------------------


def numbered(first: int, last: int) -> Tensor:
    """Samples of shape (2,) that tell which they are."""
    return torch.arange(first, last, dtype=torch.float32)[:, None].expand(-1, 2)


def full_pool(capacity: int = 8, swap_probability: float = 0.5) -> FakePosePool:
    """Holds samples 0 to capacity."""
    pool = FakePosePool(capacity, (2,), swap_probability)
    pool.exchange(numbered(0, capacity), generator())
    return pool


def test_a_pool_fills_before_it_swaps() -> None:
    pool = FakePosePool(8, (2,), 1.0)
    for first, last, size in ((0, 3, 3), (3, 8, 8)):
        samples = numbered(first, last)
        assert torch.equal(pool.exchange(samples, generator()), samples)
        assert len(pool) == size
    assert torch.equal(pool.items, numbered(0, 8))


def test_a_batch_may_fill_the_pool_and_swap() -> None:
    pool = FakePosePool(8, (2,), 1.0)
    pool.exchange(numbered(0, 5), generator())
    out = pool.exchange(numbered(5, 10), generator())
    assert torch.equal(out[:3], numbered(5, 8))
    assert (out[3:] < 8).all()
    assert len(pool) == 8


@pytest.mark.parametrize("swap_probability", [0.0, 0.3, 1.0])
def test_the_share_that_is_swapped(swap_probability: float) -> None:
    pool, draws, random = full_pool(512, swap_probability), 20 * 256, generator(1)
    swapped = 0
    for i in range(20):
        samples = numbered(1000 + 256 * i, 1256 + 256 * i)
        swapped += int((pool.exchange(samples, random) != samples).all(1).sum())
    expected = swap_probability * draws
    assert abs(swapped - expected) <= 5 * math.sqrt(expected * (1 - swap_probability))


def test_samples_of_one_batch_go_to_distinct_slots() -> None:
    pool = full_pool(8, 1.0)
    out = pool.exchange(numbered(8, 16), generator())
    assert torch.equal(out.sort(0).values, numbered(0, 8))
    assert torch.equal(pool.items.sort(0).values, numbered(8, 16))


def test_every_slot_is_swapped_sooner_or_later() -> None:
    pool, random = full_pool(8), generator()
    for i in range(1, 60):
        pool.exchange(numbered(8 * i, 8 * i + 2), random)
    assert (pool.items >= 8).all()


def test_a_batch_larger_than_the_pool() -> None:
    pool = full_pool(4, 1.0)
    samples = numbered(4, 14)
    out = pool.exchange(samples, generator())
    assert torch.equal(out[:4].sort(0).values, numbered(0, 4))
    assert torch.equal(out[4:], samples[4:])
    assert torch.equal(pool.items.sort(0).values, samples[:4])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 6),
    st.lists(st.integers(0, 10), max_size=6),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 2**32),
)
def test_nothing_is_lost_and_nothing_doubled(
    capacity: int, batches: list[int], swap_probability: float, seed: int
) -> None:
    pool, random = FakePosePool(capacity, (), swap_probability), generator(seed)
    samples = torch.arange(sum(batches), dtype=torch.float32)
    out = [pool.exchange(batch, random) for batch in samples.split(batches)] if batches else []
    assert [len(batch) for batch in out] == batches
    # What fills the pool comes back as well, so it counts twice.
    stored = min(capacity, len(samples))
    assert len(pool) == stored
    there = torch.cat([*out, pool.items[:stored]]).sort().values
    assert torch.equal(there, torch.cat([samples, samples[:stored]]).sort().values)


def test_a_pool_without_capacity_gives_back_what_it_gets() -> None:
    pool = FakePosePool(0, (2,), 1.0)
    assert torch.equal(pool.exchange(numbered(0, 5), generator()), numbered(0, 5))
    assert len(pool) == 0


def test_a_pool_keeps_no_graph() -> None:
    pool = full_pool()
    samples = numbered(8, 12).clone().requires_grad_()
    out = pool.exchange(2 * samples, generator())
    assert not out.requires_grad
    assert not pool.items.requires_grad


def test_a_pool_does_not_change_what_it_got_or_gave() -> None:
    pool, samples, random = full_pool(8, 1.0), numbered(8, 16).clone(), generator()
    out = pool.exchange(samples, random)
    kept = out.clone()
    assert torch.equal(samples, numbered(8, 16))
    samples.zero_()
    pool.exchange(numbered(16, 24), random)
    assert torch.equal(out, kept)
    assert pool.items.min() == 16


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    state = torch.get_rng_state()
    one, other = (full_pool().exchange(numbered(8, 16), generator(5)) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fill", [0, 3, 8])
def test_a_pool_goes_on_where_its_state_was_saved(fill: int) -> None:
    pool = FakePosePool(8, (2,))
    pool.exchange(numbered(0, fill), generator())
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    file.seek(0)
    loaded = FakePosePool(8, (2,))
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert len(loaded) == fill
    samples = numbered(fill, fill + 6)
    assert torch.equal(loaded.exchange(samples, generator(1)), pool.exchange(samples, generator(1)))
    assert torch.equal(loaded.items, pool.items)
    assert len(loaded) == len(pool)

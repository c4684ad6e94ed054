"""Bones, rigid motion and cameras: invariants over random skeletons, slow loops, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import agree, bent_joints, h36m_intrinsics, human_poses, scaled_joints
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from poseaug_plugin.augmentation import (
    AugmentationParameters,
    apply_augmentation,
    bone_angle_change,
    identity_parameters,
)
from poseaug_plugin.bones import (
    average_bone_lengths,
    bone_directions,
    bone_lengths,
    bones_to_joints,
    joints_to_bones,
    kinematic_chain_space,
    per_bone,
    with_bone_lengths,
)
from poseaug_plugin.camera import (
    Z_NEAR,
    image_coordinates,
    in_view,
    normalize_screen_coordinates,
    project_points,
    solve_root,
    undistort_points,
)
from poseaug_plugin.discriminators import KeypointDiscriminator, PartKCSDiscriminator
from poseaug_plugin.policy import AugmentationPolicy, Policy, RandomPolicy
from poseaug_plugin.regressor_policy import RegressorPolicy
from poseaug_plugin.rigid import (
    axis_angle_to_matrix,
    camera_to_world,
    root_relative,
    transform_rigidly,
    vertical,
    view_rotation,
    world_to_camera,
)
from poseaug_plugin.skeleton import Skeleton
from poseaug_plugin.skeletons import H36M_16, SKELETONS

some_examples = settings(max_examples=25, deadline=None)


@st.composite
def skeletons(draw: st.DrawFn) -> Skeleton:
    """A random tree with a trunk and mirrored limbs, its joints in random order."""
    parents: dict[str, str | None] = {"root": None}
    trunk = ["root"]
    parts: dict[str, list[str]] = {"torso": trunk}

    def grow(part: str, attachment: str, length: int) -> None:
        parts[part] = [f"{part}_{i}" for i in range(length)]
        parents.update(zip(parts[part], [attachment, *parts[part]], strict=False))

    for i in range(draw(st.integers(1, 4))):
        parents[f"trunk_{i}"] = draw(st.sampled_from(trunk))
        trunk.append(f"trunk_{i}")
    for i in range(draw(st.integers(0, 3))):
        attachment, length = draw(st.sampled_from(trunk)), draw(st.integers(1, 4))
        for side in ("left", "right"):
            grow(f"{side}_{i}", attachment, length)
    if draw(st.booleans()):
        grow("tail", draw(st.sampled_from(trunk)), draw(st.integers(1, 2)))
    if draw(st.booleans()):
        above = draw(st.sampled_from(trunk))
        parents |= {"left_eye": above, "right_eye": above}
        trunk += ["left_eye", "right_eye"]
    order = draw(st.permutations(list(parents)))
    return Skeleton("random", {joint: parents[joint] for joint in order}, parts)


seeds = st.integers(0, 2**32)
windows = st.tuples(st.integers(1, 3), st.integers(1, 5))  # batch, frames
leading_shapes = st.sampled_from([(), (1,), (4,), (2, 3), (2, 1, 3)])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotations(*shape: int, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(normal(*shape, 3, 3, seed=seed)).Q
    return q * torch.linalg.det(q)[..., None, None]


def any_parameters(joints: Tensor, skeleton: Skeleton, seed: int) -> AugmentationParameters:
    """Neither left/right tied nor small."""
    batch = joints.shape[0]
    return AugmentationParameters(
        0.5 * normal(batch, 1, skeleton.num_bones, 3, seed=seed),
        0.5 * normal(batch, 1, skeleton.num_bones, seed=seed).tanh(),
        rotations(batch, 1, seed=seed),
        normal(batch, 1, 3, seed=seed + 1),
        joints.new_ones(batch, 1),
    )


def lengths_of(joints: Tensor, skeleton: Skeleton) -> Tensor:
    return joints_to_bones(joints, skeleton).norm(dim=-1)


# -- bones -----------------------------------------------------------------------------------------


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_joints_to_bones_and_back(skeleton: Skeleton, lead: tuple[int, ...], seed: int) -> None:
    joints = normal(*lead, skeleton.num_joints, 3, seed=seed)
    bones = joints_to_bones(joints, skeleton)
    assert bones.shape == (*lead, skeleton.num_bones, 3)
    agree(bones_to_joints(bones, skeleton, joints[..., skeleton.root, :]), joints)


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_bones_to_joints_and_back(skeleton: Skeleton, lead: tuple[int, ...], seed: int) -> None:
    bones = normal(*lead, skeleton.num_bones, 3, seed=seed)
    joints = bones_to_joints(bones, skeleton)
    agree(joints_to_bones(joints, skeleton), bones)
    assert (joints[..., skeleton.root, :] == 0).all()


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_bones_are_what_a_loop_finds(skeleton: Skeleton, lead: tuple[int, ...], seed: int) -> None:
    joints = normal(*lead, skeleton.num_joints, 3, seed=seed)
    numbers = joints.numpy()
    expected = [
        numbers[..., parent, :] - numbers[..., child, :]
        for child, parent in enumerate(skeleton.parent_indices)
        if parent >= 0
    ]
    bones = torch.from_numpy(np.stack(expected, -2))
    agree(joints_to_bones(joints, skeleton), bones)
    lengths = torch.from_numpy(np.linalg.norm(bones.numpy(), axis=-1))
    agree(bone_lengths(bones), lengths)
    agree(bone_directions(bones), bones / lengths[..., None])


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_gram_matrix_is_what_a_loop_finds(
    skeleton: Skeleton, lead: tuple[int, ...], seed: int
) -> None:
    bones = normal(*lead, skeleton.num_bones, 3, seed=seed)
    gram = kinematic_chain_space(bones)
    for i in range(skeleton.num_bones):
        for j in range(skeleton.num_bones):
            agree(gram[..., i, j], (bones[..., i, :] * bones[..., j, :]).sum(-1))


@some_examples
@given(skeletons(), seeds)
def test_average_lengths_are_what_a_loop_finds(skeleton: Skeleton, seed: int) -> None:
    joints = normal(3, skeleton.num_joints, 3, seed=seed)
    lengths = lengths_of(joints, skeleton)
    expected = []
    for group in range(skeleton.num_bone_length_groups):
        members = [b for b, g in enumerate(skeleton.bone_length_groups) if g == group]
        expected.append(sum(lengths[:, b] for b in members) / len(members))
    agree(average_bone_lengths(joints, skeleton), torch.stack(expected, -1))


@some_examples
@given(skeletons(), seeds)
def test_new_lengths_keep_directions_and_root(skeleton: Skeleton, seed: int) -> None:
    joints = normal(3, 2, skeleton.num_joints, 3, seed=seed)
    lengths = 0.2 + normal(3, 1, skeleton.num_bones, seed=seed).square()
    changed = with_bone_lengths(joints, lengths, skeleton)
    agree(lengths_of(changed, skeleton), lengths.expand(3, 2, -1))
    directions = [bone_directions(joints_to_bones(j, skeleton)) for j in (joints, changed)]
    agree(directions[1], directions[0])
    assert torch.equal(changed[..., skeleton.root, :], joints[..., skeleton.root, :])


def test_tables_made_in_inference_mode_serve_training_later() -> None:
    skeleton = Skeleton("fresh", {"a": None, "b": "a", "c": "b"}, {"all": ["a", "b", "c"]})
    with torch.inference_mode():
        joints_to_bones(torch.randn(1, 3, 3), skeleton)
    joints = torch.randn(2, 3, 3, requires_grad=True)
    bones_to_joints(joints_to_bones(joints, skeleton), skeleton).sum().backward()
    assert joints.grad is not None


# -- augmentation ----------------------------------------------------------------------------------


@some_examples
@given(skeletons(), windows, seeds)
def test_identity_parameters_change_nothing(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    for stage in apply_augmentation(joints, identity_parameters(joints, skeleton), skeleton):
        agree(stage, joints)


def smallest_turn(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The rotation in the plane of two unit vectors that takes one to the other."""
    side = end - (start @ end) * start
    if np.linalg.norm(side) < 1e-12:
        return np.eye(3)
    side = side / np.linalg.norm(side)
    angle = math.atan2(side @ end, start @ end)
    plane = np.stack([start, side], 1)
    within = np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    ) - np.eye(2)
    return np.eye(3) + plane @ within @ plane.T


def augment_by_loop(
    joints: Tensor, parameters: AugmentationParameters, skeleton: Skeleton
) -> list[Tensor]:
    """`apply_augmentation` joint by joint, root outwards."""
    x = joints.numpy()
    offset, ratio, rotation, translation, _ = (p.numpy() for p in parameters)
    bent, scaled, moved = (np.empty_like(x) for _ in range(3))
    order = sorted(range(skeleton.num_joints), key=lambda j: len(skeleton.bones_to_root(j)))
    for sample, frame in np.ndindex(*x.shape[:2]):
        middle = x.shape[1] // 2
        centre = x[sample, middle, skeleton.root]
        for joint in order:
            here = (sample, frame, joint)
            if joint == skeleton.root:
                bent[here] = scaled[here] = x[here]
            else:
                parent = (sample, frame, skeleton.parent_indices[joint])
                bone = skeleton.bone_children.index(joint)
                vector = x[here] - x[parent]
                # Offsets are for bones from child to parent, in the middle frame.
                start = x[sample, middle, joint] - x[sample, middle, parent[2]]
                start = start / np.linalg.norm(start)
                end = start - offset[sample, 0, bone]
                turned = smallest_turn(start, end / np.linalg.norm(end)) @ vector
                bent[here] = bent[parent] + turned
                scaled[here] = scaled[parent] + turned * (1 + ratio[sample, 0, bone])
            moved[here] = rotation[sample, 0] @ (scaled[here] - centre) + translation[sample, 0]
    return [torch.from_numpy(stage) for stage in (bent, scaled, moved)]


@some_examples
@given(skeletons(), windows, seeds)
def test_augmentation_is_what_a_loop_does(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    parameters = any_parameters(joints, skeleton, seed)
    stages = apply_augmentation(joints, parameters, skeleton)
    for stage, expected in zip(stages, augment_by_loop(joints, parameters, skeleton), strict=True):
        agree(stage, expected)


@some_examples
@given(skeletons(), windows, seeds)
def test_bending_and_moving_keep_bone_lengths(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    stages = apply_augmentation(joints, any_parameters(joints, skeleton, seed), skeleton)
    agree(lengths_of(stages.bent, skeleton), lengths_of(joints, skeleton))
    agree(lengths_of(stages.moved, skeleton), lengths_of(stages.scaled, skeleton))


@some_examples
@given(skeletons(), windows, seeds)
def test_scaling_multiplies_lengths_and_keeps_directions(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    ratio = any_parameters(joints, skeleton, seed).bone_length_ratio
    scaled = scaled_joints(joints, ratio, skeleton)
    agree(lengths_of(scaled, skeleton), lengths_of(joints, skeleton) * (1 + ratio))
    agree(
        bone_angle_change(joints, scaled, skeleton), torch.zeros_like(lengths_of(joints, skeleton))
    )


def test_bone_angle_change_counts_from_zero_to_two() -> None:
    skeleton = Skeleton("bone", {"a": None, "b": "a"}, {"all": ["a", "b"]})
    before = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    for after, change in (([2.0, 0, 0], 0.0), ([0.0, 3, 0], 1.0), ([-1.0, 0, 0], 2.0)):
        turned = bone_angle_change(before, torch.tensor([[0.0, 0, 0], after]), skeleton)
        assert turned.tolist() == [change]


# -- left and right --------------------------------------------------------------------------------


def mirror(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """The pose in the mirror: x negated, left joints called right."""
    return joints[..., list(skeleton.flip_permutation), :] * joints.new_tensor([-1, 1, 1])


def mirrored_bones(skeleton: Skeleton) -> list[int]:
    flip, children = skeleton.flip_permutation, skeleton.bone_children
    return [children.index(flip[child]) for child in children]


@some_examples
@given(skeletons(), seeds)
def test_mirroring_twice_is_nothing(skeleton: Skeleton, seed: int) -> None:
    joints = normal(2, skeleton.num_joints, 3, seed=seed)
    assert torch.equal(mirror(mirror(joints, skeleton), skeleton), joints)


@some_examples
@given(skeletons(), seeds)
def test_bones_of_the_mirror_image(skeleton: Skeleton, seed: int) -> None:
    joints = normal(2, skeleton.num_joints, 3, seed=seed)
    bones = joints_to_bones(joints, skeleton)[:, mirrored_bones(skeleton)]
    agree(joints_to_bones(mirror(joints, skeleton), skeleton), bones * bones.new_tensor([-1, 1, 1]))


@some_examples
@given(skeletons(), seeds)
def test_average_lengths_of_the_mirror_image(skeleton: Skeleton, seed: int) -> None:
    joints = normal(2, skeleton.num_joints, 3, seed=seed)
    lengths = average_bone_lengths(joints, skeleton)
    agree(average_bone_lengths(mirror(joints, skeleton), skeleton), lengths)


@some_examples
@given(skeletons(), windows, seeds)
def test_tied_scaling_commutes_with_the_mirror(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    groups = 0.5 * normal(size[0], 1, skeleton.num_bone_length_groups, seed=seed).tanh()
    ratio = per_bone(groups, skeleton)
    scaled = scaled_joints(joints, ratio, skeleton)
    agree(scaled_joints(mirror(joints, skeleton), ratio, skeleton), mirror(scaled, skeleton))


@some_examples
@given(skeletons(), windows, seeds)
def test_mirrored_bending_commutes_with_the_mirror(
    skeleton: Skeleton, size: tuple[int, int], seed: int
) -> None:
    joints = human_poses(*size, skeleton, generator(seed))
    offset = any_parameters(joints, skeleton, seed).bone_direction_offset
    opposite = offset[:, :, mirrored_bones(skeleton)] * offset.new_tensor([-1, 1, 1])
    bent = bent_joints(joints, offset, skeleton)
    agree(bent_joints(mirror(joints, skeleton), opposite, skeleton), mirror(bent, skeleton))


# -- windows ---------------------------------------------------------------------------------------


def window_and_parameters(frames: int = 5) -> tuple[Tensor, AugmentationParameters]:
    """A window in which bodies walk, and parameters shared over time."""
    joints = human_poses(4, frames, H36M_16, generator(0))
    parameters = any_parameters(joints, H36M_16, 1)
    return joints, parameters._replace(
        bone_direction_offset=parameters.bone_direction_offset[:, :1]
    )


def test_bone_lengths_stay_constant_over_a_window() -> None:
    joints, parameters = window_and_parameters()
    for stage in apply_augmentation(joints, parameters, H36M_16):
        lengths = lengths_of(stage, H36M_16)
        agree(lengths, lengths[:, :1].expand_as(lengths))


def test_the_root_keeps_its_speed_in_every_frame() -> None:
    joints, parameters = window_and_parameters()
    moved = apply_augmentation(joints, parameters, H36M_16).moved
    speeds = [poses[:, :, H36M_16.root].diff(dim=1).norm(dim=-1) for poses in (joints, moved)]
    assert (speeds[0] > 0).all()
    agree(speeds[1], speeds[0])


def test_the_root_path_is_rotated_along() -> None:
    joints, parameters = window_and_parameters()
    moved = apply_augmentation(joints, parameters, H36M_16).moved
    before, after = (poses[:, :, H36M_16.root].diff(dim=1) for poses in (joints, moved))
    agree(after, (parameters.rotation @ before.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_the_middle_frame_is_put_in_place(frames: int) -> None:
    joints, parameters = window_and_parameters(frames)
    moved = apply_augmentation(joints, parameters, H36M_16).moved
    agree(moved[:, frames // 2, H36M_16.root], parameters.translation[:, 0])


# -- rotations -------------------------------------------------------------------------------------

axis_angles = st.tuples(*[st.floats(-10, 10)] * 3).map(lambda v: torch.tensor(v).double())


def cross_matrix(v: Tensor) -> Tensor:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def test_a_turn_about_z_takes_x_towards_y() -> None:
    turned = axis_angle_to_matrix(torch.tensor([0.0, 0.0, 0.6])) @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(turned, torch.tensor([0.825, 0.565, 0.0]), atol=5e-4, rtol=0)


@some_examples
@given(axis_angles)
def test_rotation_matrices_are_rotations(axis_angle: Tensor) -> None:
    matrix = axis_angle_to_matrix(axis_angle)
    agree(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), 1e-14)
    agree(torch.linalg.det(matrix), torch.ones((), dtype=torch.float64), 1e-14)


@some_examples
@given(axis_angles)
def test_axis_angles_are_exponentiated(axis_angle: Tensor) -> None:
    expected = torch.linalg.matrix_exp(cross_matrix(axis_angle))
    agree(axis_angle_to_matrix(axis_angle), expected)


# About the smallest angle that a sine is divided by, and far from it.
ANGLES = [0.0, 1e-13, 1e-12, 1e-9, 1e-4, 0.01, 0.1, math.pi]


@pytest.mark.parametrize("angle", ANGLES)
def test_small_angles_are_exact_too(angle: float) -> None:
    axis_angle = angle * nn.functional.normalize(normal(5, 3), dim=-1)
    expected = torch.linalg.matrix_exp(cross_matrix(axis_angle))
    torch.testing.assert_close(axis_angle_to_matrix(axis_angle), expected, rtol=0, atol=2e-15)


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_gradients(angle: float) -> None:
    axis_angle = angle * nn.functional.normalize(normal(2, 3), dim=-1)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, axis_angle.requires_grad_())


def test_the_rotation_gradient_at_zero_is_exact() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(axis_angle_to_matrix, zero)
    axes = cross_matrix(torch.eye(3, dtype=torch.float64))
    assert torch.equal(jacobian, axes.permute(1, 2, 0))


def test_float32_rotations_are_rotations() -> None:
    angles = torch.logspace(-8, 1, 100)
    axes = nn.functional.normalize(normal(100, 3).float(), dim=-1)
    matrices = axis_angle_to_matrix(angles[:, None] * axes)
    torch.testing.assert_close(
        matrices @ matrices.mT, torch.eye(3).expand(100, 3, 3), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("which", "moved", "to"),
    [("yaw", "z", "x"), ("pitch", "y", "z"), ("roll", "x", "y")],
)
def test_each_view_angle_turns_its_own_way(which: str, moved: str, to: str) -> None:
    # The camera's axes: x right, y down, z forward.
    axes = dict(zip("xyz", torch.eye(3, dtype=torch.float64), strict=True))
    angles = dict.fromkeys(("yaw", "pitch", "roll"), torch.zeros((), dtype=torch.float64))
    angles[which] = torch.tensor(0.6, dtype=torch.float64)
    expected = math.cos(0.6) * axes[moved] + math.sin(0.6) * axes[to]
    agree(view_rotation(**angles, axis=axes["y"]) @ axes[moved], expected)


@some_examples
@given(st.floats(-4, 4), st.floats(-4, 4), st.floats(-4, 4))
def test_view_rotation_turns_then_tilts_then_rolls(yaw: float, pitch: float, roll: float) -> None:
    y, p, r = torch.tensor([yaw, pitch, roll], dtype=torch.float64)
    zero, axis = torch.zeros_like(y), torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    each = [
        axis_angle_to_matrix(y * axis),
        view_rotation(zero, p, zero, axis),
        view_rotation(zero, zero, r, axis),
    ]
    agree(view_rotation(y, p, r, axis), each[2] @ each[1] @ each[0])


@pytest.mark.parametrize("degrees", [-50.0, 0.0, 7.0, 50.0])
def test_people_stand_on_their_vertical_however_the_camera_looks(degrees: float) -> None:
    # Bodies of 16 joints, three times as high as wide.
    poses = normal(256, 16, 3) * torch.tensor([0.15, 0.45, 0.15], dtype=torch.float64)
    tilt = axis_angle_to_matrix(torch.tensor([math.radians(degrees), 0.0, 0.0]).double())
    cosine = vertical(poses @ tilt.T) @ (tilt @ torch.tensor([0.0, 1.0, 0.0]).double())
    assert torch.rad2deg(cosine.clamp(-1, 1).acos()) < 2


def test_poses_without_a_longest_axis_leave_the_cameras() -> None:
    agree(vertical(torch.eye(3).unsqueeze(0)), torch.tensor([0.0, 1.0, 0.0]))


def test_points_have_no_vertical() -> None:
    assert torch.equal(vertical(torch.zeros(4, 16, 3)), torch.zeros(3))


@some_examples
@given(seeds)
def test_rigid_motion_keeps_distances_and_carries_the_centre(seed: int) -> None:
    points, centre, target = normal(4, 9, 3, seed=seed), normal(4, 3), normal(4, 3, seed=1)
    moved = transform_rigidly(points, rotations(4, seed=seed), centre, target)
    agree(torch.cdist(moved, moved), torch.cdist(points, points), 1e-6)
    agree((moved - target[:, None]).norm(dim=-1), (points - centre[:, None]).norm(dim=-1))


def test_a_quaternion_about_z_takes_x_towards_y() -> None:
    quaternion = torch.tensor([math.cos(0.3), 0.0, 0.0, math.sin(0.3)])
    turned = camera_to_world(torch.tensor([1.0, 0.0, 0.0]), quaternion, torch.zeros(3))
    torch.testing.assert_close(turned, torch.tensor([0.825, 0.565, 0.0]), atol=5e-4, rtol=0)


@some_examples
@given(seeds)
def test_to_the_camera_and_back(seed: int) -> None:
    points = normal(4, 9, 3, seed=seed)
    orientation = nn.functional.normalize(normal(4, 1, 4, seed=seed), dim=-1)
    translation = normal(4, 1, 3, seed=seed)
    seen = world_to_camera(points, orientation, translation)
    agree(camera_to_world(seen, orientation, translation), points)


def test_the_camera_is_at_its_own_origin() -> None:
    orientation = nn.functional.normalize(normal(4, 4), dim=-1)
    translation = normal(4, 3)
    agree(world_to_camera(translation, orientation, translation), torch.zeros_like(translation))


@some_examples
@given(skeletons(), leading_shapes, seeds)
def test_root_relative(skeleton: Skeleton, lead: tuple[int, ...], seed: int) -> None:
    joints = normal(*lead, skeleton.num_joints, 3, seed=seed)
    relative = root_relative(joints, skeleton)
    assert (relative[..., skeleton.root, :] == 0).all()
    agree(joints_to_bones(relative, skeleton), joints_to_bones(joints, skeleton))


# -- projection ------------------------------------------------------------------------------------


def pinhole(batch: int = 1, focal: float = 2.0) -> Tensor:
    """No distortion, principal point in the middle."""
    intrinsics = torch.zeros(batch, 9, dtype=torch.float64)
    intrinsics[:, :2] = focal
    return intrinsics


def any_cameras(batch: int, seed: int) -> Tensor:
    """About Human3.6M's, with other numbers for every coefficient."""
    scale = torch.tensor([0.3, 0.3, 0.1, 0.1, 0.1, 0.1, 0.02, 0.01, 0.01])
    return h36m_intrinsics(batch) + scale * normal(batch, 9, seed=seed).tanh()


def project_by_loop(points: Tensor, intrinsics: Tensor, distortion: bool) -> Tensor:
    """Human3.6M's lens model, point by point."""
    seen = np.empty((*points.shape[:-1], 2))
    for index in np.ndindex(*points.shape[:-1]):
        x, y, z = points[index].tolist()
        fx, fy, cx, cy, k1, k2, k3, p1, p2 = intrinsics[index[0]].tolist()
        a, b = x / z, y / z
        if distortion:
            r2 = a * a + b * b
            factor = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + p1 * a + p2 * b
            a, b = a * factor + p1 * r2, b * factor + p2 * r2
        seen[index] = fx * a + cx, fy * b + cy
    return torch.from_numpy(seen)


@some_examples
@given(st.sampled_from([(), (5,), (2, 5), (2, 1, 3)]), st.booleans(), seeds)
def test_projection_is_what_a_loop_finds(
    shape: tuple[int, ...], distortion: bool, seed: int
) -> None:
    points = normal(3, *shape, 3, seed=seed) + torch.tensor([0.0, 0.0, 6.0])
    points[..., 2].clamp_(min=2 * Z_NEAR)
    intrinsics = any_cameras(3, seed)
    seen = project_points(points, intrinsics, distortion=distortion)
    agree(seen, project_by_loop(points, intrinsics, distortion))


def test_clamped_rays_stop_at_45_degrees() -> None:
    points = torch.tensor([[[9.0, -0.5, 1.0], [-9.0, 0.5, 1.0]]], dtype=torch.float64)
    seen = project_points(points, pinhole(), clamp_rays=True)
    assert seen.tolist() == [[[2.0, -1.0], [-2.0, 1.0]]]


def outside_or_behind() -> Tensor:
    """A grid of points from far left to far right and from behind the camera to far before it."""
    x, y = (torch.linspace(-3, 3, 7).double() + 0.05 for _ in range(2))
    z = torch.tensor([-5.0, -1.0, -Z_NEAR, 0.0, 0.5 * Z_NEAR, Z_NEAR, 0.2, 1.0, 4.0])
    return torch.cartesian_prod(x, y, z.double())[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distortion", [False, True])
def test_projection_gradients_never_vanish_or_overflow(
    dtype: torch.dtype, distortion: bool
) -> None:
    points = outside_or_behind().to(dtype).requires_grad_()
    for intrinsics in h36m_intrinsics(4).to(dtype):
        seen = project_points(points, intrinsics[None], distortion=distortion)
        assert seen.isfinite().all()
        for coordinate in seen.unbind(-1):
            (slopes,) = torch.autograd.grad(coordinate.sum(), points, retain_graph=True)
            assert slopes.isfinite().all()
            assert (slopes.norm(dim=-1) > 0).all()


def test_a_step_to_the_right_is_one_to_the_right_everywhere() -> None:
    # Behind the camera 1/z would mirror the picture and push points the wrong way.
    points = outside_or_behind().requires_grad_()
    seen = project_points(points, pinhole())
    for axis in (0, 1):
        (slopes,) = torch.autograd.grad(seen[..., axis].sum(), points, retain_graph=True)
        assert (slopes[..., axis] > 0).all()


def test_a_step_to_the_right_is_one_to_the_right_through_a_real_lens_too() -> None:
    points = outside_or_behind().expand(4, -1, -1).clone().requires_grad_()
    seen = project_points(points, h36m_intrinsics(4))
    for axis in (0, 1):
        (slopes,) = torch.autograd.grad(seen[..., axis].sum(), points, retain_graph=True)
        assert (slopes[..., axis] > 0).all()


def test_a_step_forward_is_one_towards_the_middle_everywhere() -> None:
    points = outside_or_behind().requires_grad_()
    distance = project_points(points, pinhole()).norm(dim=-1)
    (slopes,) = torch.autograd.grad(distance.sum(), points)
    assert (slopes[..., 2] < 0).all()


def test_projection_is_smooth_where_one_over_z_ends() -> None:
    depths = torch.tensor([Z_NEAR - 1e-9, Z_NEAR + 1e-9], dtype=torch.float64, requires_grad=True)
    points = torch.stack([torch.ones(2).double(), torch.ones(2).double(), depths], -1)
    seen = project_points(points[None], pinhole())[0]
    agree(seen[0], seen[1], 1e-6)
    (slopes,) = torch.autograd.grad(seen.sum(), depths)
    agree(slopes[0], slopes[1], 1e-6)


@some_examples
@given(st.integers(1, 5000), st.integers(1, 5000), seeds)
def test_pixels_to_the_screen_and_back(width: int, height: int, seed: int) -> None:
    pixels = 1000 * normal(7, 2, seed=seed)
    normalized = normalize_screen_coordinates(pixels, width, height)
    agree(image_coordinates(normalized, width, height), pixels)


def test_corners_of_the_screen() -> None:
    corners = torch.tensor([[0.0, 0.0], [1920, 1080], [960, 540]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, -0.5625], [1, 0.5625], [0, 0]], dtype=torch.float64)
    agree(normalize_screen_coordinates(corners, 1920, 1080), expected)
    agree(normalize_screen_coordinates(corners.long(), 1920, 1080), expected.float())


# -- what is in view -------------------------------------------------------------------------------


def is_in_view(x: float, y: float, z: float, intrinsics: Tensor, **options: float) -> bool:
    point = torch.tensor([[x, y, z]], dtype=torch.float64)
    return bool(in_view(point, intrinsics, **options))


SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("aspect_ratio", [1.0, 0.5625, 1.5])
def test_the_frame_ends_on_each_side(side: str, aspect_ratio: float) -> None:
    # Half a metre per metre of depth is the frame's edge at focal length 2.
    edge = 0.5 * 4.0 * (1.0 if side in ("left", "right") else aspect_ratio)
    for distance, expected in ((0.99, True), (1.01, False)):
        x, y = (distance * edge * c for c in SIDES[side])
        assert is_in_view(x, y, 4.0, pinhole(), aspect_ratio=aspect_ratio) is expected


@pytest.mark.parametrize("side", SIDES)
def test_the_principal_point_shifts_what_is_in_view(side: str) -> None:
    intrinsics = pinhole()
    intrinsics[:, 2:4] = 0.2 * torch.tensor(SIDES[side])
    x, y = (0.9 * 2.0 * c for c in SIDES[side])
    assert not is_in_view(x, y, 4.0, intrinsics)
    assert is_in_view(-x, -y, 4.0, intrinsics)


@pytest.mark.parametrize("depth", [-4.0, -0.01, 0.0, 0.5 * Z_NEAR, Z_NEAR])
def test_nothing_behind_or_at_the_camera_is_in_view(depth: float) -> None:
    assert not is_in_view(0.0, 0.0, depth, pinhole())
    assert is_in_view(0.0, 0.0, Z_NEAR + 0.01, pinhole())


def test_rays_that_the_lens_folds_back_are_not_in_view() -> None:
    # Barrel distortion: from slope 1.05 on the polynomial returns towards the middle.
    intrinsics = pinhole()
    intrinsics[:, :2] = 1.0
    intrinsics[:, 4] = -0.3
    point = torch.tensor([[[1.4, 0.0, 1.0]]], dtype=torch.float64)
    assert project_points(point, intrinsics).abs().max() < 0.7
    assert not is_in_view(1.4, 0.0, 1.0, intrinsics)
    assert is_in_view(0.4, 0.0, 1.0, intrinsics)


# A slope of 0.8 along x, at focal length 2, or along y, at 1 in a picture half as high as wide.
LENS_EDGE = [(0.8, 0.0, 2.0, 1.0), (0.0, 0.8, 1.0, 0.5)]


@pytest.mark.parametrize("coefficient", [4, 5, 6])
def test_a_lens_turns_over_where_its_radius_no_longer_grows(coefficient: int) -> None:
    # r (1 + k r^n) grows up to r^n = -1 / (k (n + 1)).
    intrinsics = pinhole()
    intrinsics[:, :2], intrinsics[:, coefficient] = 0.5, -0.2
    power = 2 * (coefficient - 3)
    turn = (1 / (0.2 * (power + 1))) ** (1 / power)
    assert is_in_view(turn - 0.01, 0.0, 1.0, intrinsics)
    assert not is_in_view(turn + 0.01, 0.0, 1.0, intrinsics)


@pytest.mark.parametrize(("x", "y", "focal_length", "aspect_ratio"), LENS_EDGE)
def test_what_only_the_lens_brings_into_the_frame_is_not_in_view(
    x: float, y: float, focal_length: float, aspect_ratio: float
) -> None:
    # A slope of 0.8 is seen as 0.496, and the lens does not turn over before 0.84.
    intrinsics = pinhole()
    intrinsics[:, :2], intrinsics[:, 4], intrinsics[:, 5] = focal_length, -0.742, 0.232
    point = torch.tensor([[[x, y, 1.0]]], dtype=torch.float64)
    limits = torch.tensor([1.0, aspect_ratio], dtype=torch.float64)
    assert (project_points(point, intrinsics).abs() <= limits).all()
    assert not is_in_view(x, y, 1.0, intrinsics, aspect_ratio=aspect_ratio)
    assert is_in_view(0.8 * x, 0.8 * y, 1.0, intrinsics, aspect_ratio=aspect_ratio)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_not_a_number_is_not_in_view(axis: int) -> None:
    point = [0.0, 0.0, 4.0]
    point[axis] = math.nan
    assert not is_in_view(*point, pinhole())


def test_points_are_in_view_one_by_one() -> None:
    points = torch.tensor([0.0, 0.0, 4.0]).double().expand(2, 3, 5, 3).clone()
    points[1, 2, 3, 0] = 9.0
    seen = in_view(points, pinhole(2))
    assert seen.shape == (2, 3, 5)
    assert (~seen).nonzero().tolist() == [[1, 2, 3]]


# -- where a pose stands ---------------------------------------------------------------------------


def seen_poses(
    *, distortion: bool, frames: int = 2, skeleton: Skeleton = H36M_16
) -> tuple[Tensor, Tensor, Tensor]:
    """Poses (8, T, J, 3) in view, their keypoints and cameras."""
    joints = human_poses(8, frames, skeleton, generator(3))
    intrinsics = h36m_intrinsics(8)
    if not distortion:
        intrinsics[:, 4:] = 0
    return joints, project_points(joints, intrinsics), intrinsics


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
@pytest.mark.parametrize("distortion", [False, True])
def test_the_root_is_recovered(distortion: bool, skeleton: Skeleton) -> None:
    joints, keypoints, intrinsics = seen_poses(distortion=distortion, skeleton=skeleton)
    solved = solve_root(keypoints, root_relative(joints, skeleton), intrinsics)
    assert solved.found.all()
    # Undistortion is iterated, so a distorted one is exact to nanometres only.
    agree(solved.root, joints[:, :, skeleton.root], 1e-9 if distortion else 1e-12)


def test_undistortion_is_exact_up_to_the_corners() -> None:
    slopes = torch.cartesian_prod(*[torch.linspace(-0.42, 0.42, 9).double()] * 2).expand(4, -1, 2)
    points = torch.cat([slopes, torch.ones_like(slopes[..., :1])], -1)
    intrinsics = h36m_intrinsics(4)
    agree(undistort_points(project_points(points, intrinsics), intrinsics), slopes)


def test_the_root_of_noisy_keypoints_is_the_least_squares_one() -> None:
    joints, keypoints, intrinsics = seen_poses(distortion=False, frames=1)
    noisy = keypoints + 0.01 * normal(*keypoints.shape)
    relative = root_relative(joints, H36M_16)
    solved = solve_root(noisy, relative, intrinsics)
    for sample in range(len(joints)):
        rows, targets = [], []
        for joint in range(H36M_16.num_joints):
            slopes = (noisy[sample, 0, joint] - intrinsics[sample, 2:4]) / intrinsics[sample, :2]
            x, y, z = relative[sample, 0, joint].tolist()
            a, b = slopes.tolist()
            rows += [[1, 0, -a], [0, 1, -b]]
            targets += [a * z - x, b * z - y]
        root = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
        agree(solved.root[sample, 0], torch.from_numpy(root))


def test_a_pose_that_is_one_point_has_no_depth() -> None:
    joints, keypoints, intrinsics = seen_poses(distortion=True)
    solved = solve_root(keypoints[:, :, :1].expand_as(keypoints), 0 * joints, intrinsics)
    assert not solved.found.any()
    assert solved.root.isfinite().all()


def test_a_pose_seen_from_behind_the_camera_is_not_found() -> None:
    # 1/z with a negative z: the keypoints fit a pose behind the camera only.
    joints, _, intrinsics = seen_poses(distortion=False)
    behind = joints - torch.tensor([0.0, 0.0, 10.0])
    keypoints = intrinsics[:, None, None, :2] * behind[..., :2] / behind[..., 2:]
    keypoints = keypoints + intrinsics[:, None, None, 2:4]
    solved = solve_root(keypoints, root_relative(joints, H36M_16), intrinsics)
    agree(solved.root, behind[:, :, H36M_16.root])
    assert not solved.found.any()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_keypoint_spoils_its_own_pose_only(broken: float) -> None:
    joints, keypoints, intrinsics = seen_poses(distortion=True)
    keypoints[3, 1, 5, 0] = broken
    solved = solve_root(keypoints, root_relative(joints, H36M_16), intrinsics)
    assert (~solved.found).nonzero().tolist() == [[3, 1]]


# -- bones without a length ------------------------------------------------------------------------


def collapsed(which: str, dtype: torch.dtype) -> Tensor:
    """Poses (4, 1, J, 3) of which the first has bones of length zero."""
    joints = human_poses(4, 1, H36M_16, generator(0)).to(dtype)
    if which == "one bone":
        joints[0, :, 11] = joints[0, :, 10]
    elif which == "trunk":
        joints[0, :, 7:9] = joints[0, :, :1]
    else:
        joints[0] = joints[0, :, :1]
    return joints.requires_grad_()


each_collapse = pytest.mark.parametrize("which", ["one bone", "trunk", "all bones"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

BONE_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lengths": lambda x: bone_lengths(joints_to_bones(x, H36M_16)),
    "directions": lambda x: bone_directions(joints_to_bones(x, H36M_16)),
    "average lengths": lambda x: average_bone_lengths(x, H36M_16),
    "new lengths": lambda x: with_bone_lengths(x, torch.ones(15, dtype=x.dtype), H36M_16),
    "gram": lambda x: kinematic_chain_space(bone_directions(joints_to_bones(x, H36M_16))),
    "bend": lambda x: bent_joints(x, x.new_full((4, 1, 15, 3), 0.1), H36M_16),
    "bend by nothing": lambda x: bent_joints(x, x.new_zeros(4, 1, 15, 3), H36M_16),
    "scale": lambda x: scaled_joints(x, x.new_full((4, 1, 15), 0.1), H36M_16),
    "angle change": lambda x: bone_angle_change(
        x, bent_joints(x, x.new_full((4, 1, 15, 3), 0.1), H36M_16), H36M_16
    ),
}


def assert_finite_with_gradients(of: Tensor, *wrt: Tensor) -> None:
    assert of.isfinite().all()
    weights = torch.randn(of.shape, generator=generator(0), dtype=of.dtype)
    for slopes in torch.autograd.grad(of, wrt, weights, allow_unused=True):
        assert slopes is None or slopes.isfinite().all()


@each_dtype
@each_collapse
@pytest.mark.parametrize("name", BONE_FUNCTIONS)
def test_bones_without_length_give_finite_numbers(
    name: str, which: str, dtype: torch.dtype
) -> None:
    joints = collapsed(which, dtype)
    assert_finite_with_gradients(BONE_FUNCTIONS[name](joints), joints)


@each_dtype
def test_a_bone_bent_into_nothing_gives_finite_numbers(dtype: torch.dtype) -> None:
    joints = human_poses(4, 1, H36M_16, generator(0)).to(dtype)
    opposite = -bone_directions(joints_to_bones(joints, H36M_16))
    opposite.requires_grad_()
    assert_finite_with_gradients(bent_joints(joints, opposite, H36M_16), opposite)


def test_a_bone_without_length_has_no_direction() -> None:
    directions = bone_directions(joints_to_bones(collapsed("all bones", torch.float64), H36M_16))
    assert (directions[0] == 0).all()
    agree(directions[1:].norm(dim=-1), torch.ones(3, 1, 15, dtype=torch.float64))


@each_dtype
@each_collapse
@pytest.mark.parametrize("scope", ["parts", "whole"])
def test_critic_scores_bones_without_length(scope: str, which: str, dtype: torch.dtype) -> None:
    critic = PartKCSDiscriminator(H36M_16, scope=scope, width=8).to(dtype)
    joints = collapsed(which, dtype)
    assert_finite_with_gradients(critic(joints[:, 0]), joints, *critic.parameters())


@each_dtype
@each_collapse
@pytest.mark.parametrize("policy_class", [RandomPolicy, AugmentationPolicy, RegressorPolicy])
@pytest.mark.parametrize("training", [True, False])
def test_policies_augment_bones_without_length(
    training: bool, policy_class: type[Policy], which: str, dtype: torch.dtype
) -> None:
    policy = policy_class(H36M_16, fixed_trunk=True).to(dtype).train(training)
    joints = collapsed(which, dtype)
    noise = normal(4, policy.noise_size).to(dtype)
    poses = apply_augmentation(joints, policy(joints, noise), H36M_16)
    # The critics see it as in training: what was bent, and the projection of what was moved.
    critics = (
        PartKCSDiscriminator(H36M_16, width=8).to(dtype),
        KeypointDiscriminator(H36M_16, width=8).to(dtype),
    )
    seen = project_points(poses.moved, h36m_intrinsics(4).to(dtype))
    scores = [critics[0](poses.bent[:, 0]), critics[1](seen[:, 0])]
    for of in (*poses, *scores):
        assert of.isfinite().all()
    loss = (
        sum(score.sum() for score in scores) + bone_angle_change(joints, poses.bent, H36M_16).mean()
    )
    assert_finite_with_gradients(loss, joints, *policy.parameters())

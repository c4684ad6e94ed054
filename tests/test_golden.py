"""Every part against the numbers of the reference code (see tests/golden/README.md).

Nothing here depends on the numbers themselves: another set with the same keys serves as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from helpers import (
    REFERENCE_2D_LAYERS,
    REFERENCE_BRANCHES,
    REFERENCE_PARTS,
    agree,
    below,
    golden,
    load_reference_critic_2d,
    load_reference_critic_3d,
    load_reference_policy,
    reference_columns,
    reference_critic_3d_names,
    reference_norms,
    scaled_joints,
)
from torch import Tensor, nn

from poseaug_plugin.augmentation import (
    AugmentationParameters,
    AugmentedPoses,
    apply_augmentation,
    bone_angle_change,
)
from poseaug_plugin.bones import (
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
    normalize_screen_coordinates,
    project_points,
)
from poseaug_plugin.curriculum import Ramp, linear_decay
from poseaug_plugin.discriminators import KeypointDiscriminator, PartKCSDiscriminator
from poseaug_plugin.losses import (
    critic_accuracy,
    dead_zone,
    estimator_errors,
    lsgan_critic_loss,
    lsgan_policy_loss,
    paper_feedback,
    rectified_mean,
    released_feedback,
)
from poseaug_plugin.pool import FakePosePool
from poseaug_plugin.regressor_policy import RegressorPolicy
from poseaug_plugin.regressors import RawParameters
from poseaug_plugin.rigid import (
    axis_angle_to_matrix,
    camera_to_world,
    root_relative,
    world_to_camera,
)
from poseaug_plugin.skeletons import H36M_16

KINEMATICS, KCS, DISCRIMINATORS, AUGMENTOR, CAMERA, LOSSES = map(
    golden, ("kinematics", "kcs", "discriminators", "augmentor", "camera", "losses")
)

# torchgeometry divides by angle + 1e-6, so its rotations are off by up to 3e-6.
TORCHGEOMETRY = 1e-5


def leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_()


def gradient(of: Tensor, wrt: Tensor, weights: Tensor | None = None) -> Tensor:
    """Of ``sum(of * weights)``, or of a scalar."""
    return torch.autograd.grad(of, wrt, weights, retain_graph=True)[0]


# -- the comparison itself -------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["one entry", "shape", "nan", "scale"])
def test_agree_can_fail(broken: str) -> None:
    expected = KINEMATICS["poses"]
    wrong = expected.clone()
    if broken == "one entry":
        wrong[0, 0, 0] += 1e-7
    elif broken == "shape":
        wrong = wrong[:1]
    elif broken == "nan":
        wrong[0, 0, 0] = torch.nan
    else:
        wrong = wrong * (1 + 1e-7)
    with pytest.raises(AssertionError):
        agree(wrong, expected)


# -- kinematics ------------------------------------------------------------------------------------


def test_bone_vectors() -> None:
    agree(joints_to_bones(KINEMATICS["poses"], H36M_16), KINEMATICS["bone_vec"])


def test_bone_lengths() -> None:
    lengths = bone_lengths(joints_to_bones(KINEMATICS["poses"], H36M_16))
    agree(lengths, KINEMATICS["bone_len"][..., 0])


def test_bone_directions() -> None:
    directions = bone_directions(joints_to_bones(KINEMATICS["poses"], H36M_16))
    agree(directions, KINEMATICS["bone_unit"])


@pytest.mark.parametrize("kind", ["vec", "unit", "len"])
def test_bone_gradients(kind: str) -> None:
    poses = leaf(KINEMATICS["poses"])
    bones = joints_to_bones(poses, H36M_16)
    of, weights = {
        "vec": (bones, KINEMATICS["grad_w_vec3"]),
        "unit": (bone_directions(bones), KINEMATICS["grad_w_vec3"]),
        "len": (bone_lengths(bones), KINEMATICS["grad_w_len"][..., 0]),
    }[kind]
    agree(gradient(of, poses, weights), KINEMATICS[f"grad_bone_{kind}_wrt_poses"])


@pytest.mark.parametrize(
    ("bones", "joints"),
    [("bone_vec", "joints_from_bones"), ("bone_unit", "joints_from_unit_bones")],
)
def test_joints_from_bones(bones: str, joints: str) -> None:
    agree(bones_to_joints(KINEMATICS[bones], H36M_16), KINEMATICS[joints])


def columns(operator: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """The matrix of a linear map of points, from what it does to each unit vector."""
    basis = torch.eye(size, dtype=torch.float64).unsqueeze(-1).expand(size, size, 3)
    return operator(basis)[..., 0].T


def test_joints_to_bones_is_the_reference_matrix() -> None:
    matrix = columns(lambda joints: joints_to_bones(joints, H36M_16), H36M_16.num_joints)
    assert torch.equal(matrix, KINEMATICS["joint_to_bone"])


def test_bones_to_joints_is_the_reference_matrix() -> None:
    matrix = columns(lambda bones: bones_to_joints(bones, H36M_16), H36M_16.num_bones)
    assert torch.equal(matrix, KINEMATICS["bone_to_joint"])


@pytest.mark.parametrize("case", ["blaug_own", "blaug_other"])
def test_stretched_bones(case: str) -> None:
    own = below(KINEMATICS, f"{case}/")
    lengths, ratios = own["bl"][..., 0], own["blr"][..., 0]
    poses, lengths, ratios = map(leaf, (KINEMATICS["poses"], lengths, ratios))
    stretched = with_bone_lengths(poses, lengths * (1 + per_bone(ratios, H36M_16)), H36M_16)
    agree(stretched, own["out"])
    agree(gradient(stretched, poses, own["grad_w"]), own["grad_x"])
    agree(gradient(stretched, lengths, own["grad_w"]), own["grad_bl"][..., 0])
    agree(gradient(stretched, ratios, own["grad_w"]), own["grad_blr"][..., 0])


def test_scaling_is_stretching_from_the_own_lengths() -> None:
    ratios = per_bone(KINEMATICS["blaug_own/blr"][..., 0], H36M_16)
    scaled = scaled_joints(KINEMATICS["poses"][:, None], ratios[:, None], H36M_16)
    # The recorded lengths are the pose's own rounded to float32.
    agree(scaled[:, 0], KINEMATICS["blaug_own/out"], 1e-7)


def test_swapped_bone_lengths() -> None:
    lengths = KINEMATICS["blswap/templates"][KINEMATICS["blswap/row"]]
    swapped = with_bone_lengths(KINEMATICS["poses"], lengths, H36M_16)
    agree(swapped, KINEMATICS["blswap/out"])


# -- kinematic chain space -------------------------------------------------------------------------

each_part = pytest.mark.parametrize("part", REFERENCE_PARTS)


def part_gram(bones: Tensor, part: str) -> Tensor:
    """The Gram matrix as the critic of a part sees it."""
    position = [name for name, _ in H36M_16.part_bones].index(REFERENCE_PARTS[part])
    mask = PartKCSDiscriminator(H36M_16, width=1).part_masks[position].unflatten(0, (15, 15))
    return kinematic_chain_space(bones) * mask


def test_unit_skeleton() -> None:
    directions = bone_directions(joints_to_bones(KCS["poses"], H36M_16))
    agree(bones_to_joints(directions, H36M_16), KCS["unit_skeleton"])


@each_part
def test_part_gram_matrix(part: str) -> None:
    poses = leaf(KCS["poses"])
    gram = part_gram(bone_directions(joints_to_bones(poses, H36M_16)), part)
    agree(gram, KCS[f"kcs_{part}"])
    agree(gradient(gram, poses, KCS[f"grad_w_{part}"]), KCS[f"grad_poses_{part}"])


@each_part
def test_part_gram_matrix_of_bones_in_metres(part: str) -> None:
    agree(part_gram(joints_to_bones(KCS["poses"], H36M_16), part), KCS[f"kcs_raw_{part}"])


# -- critics ---------------------------------------------------------------------------------------


class Critic(NamedTuple):
    """A critic with the reference's weights, what it was shown, and where its scores stand."""

    network: nn.Module
    io: dict[str, Tensor]
    columns: list[int]

    def scores_of(self, which: str) -> tuple[Tensor, Tensor]:
        """Poses as a leaf, and their scores in the reference's order."""
        poses = leaf(self.io[which])
        scores = self.network(poses)
        return poses, torch.empty_like(scores).index_copy(1, torch.tensor(self.columns), scores)

    def reference_parameters(self, prefix: str) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Our parameters next to those of the reference's that were recorded under ``prefix``."""
        own = below(self.io, prefix)
        for name, parameter in self.network.named_parameters():
            layer, kind = name.split(".")
            if isinstance(self.network, KeypointDiscriminator):
                names = [f"{REFERENCE_2D_LAYERS[layer]}/{kind}"]
                if names[0] in own:
                    yield parameter, own[names[0]]
            else:
                names = reference_critic_3d_names(layer, kind)
                if names[0] in own:
                    yield parameter, torch.stack([own[n] for n in names])


def reference_critic(name: str) -> Critic:
    state, io = below(DISCRIMINATORS, f"{name}/"), below(DISCRIMINATORS, f"{name}_io/")
    if name == "d3d":
        return Critic(load_reference_critic_3d(state), io, reference_columns())
    return Critic(load_reference_critic_2d(state), io, [0])


each_critic = pytest.mark.parametrize("name", ["d3d", "d2d"])


@each_critic
@pytest.mark.parametrize("which", ["real", "fake"])
def test_critic_scores(name: str, which: str) -> None:
    critic = reference_critic(name)
    agree(critic.scores_of(which)[1], critic.io[f"out_{which}"])


@each_critic
def test_critic_score_gradient(name: str) -> None:
    critic = reference_critic(name)
    poses, scores = critic.scores_of("real")
    agree(gradient(scores, poses, critic.io["grad_w_out"]), critic.io["grad_real_out"])


@each_critic
@pytest.mark.parametrize("loss", ["dis", "gen"])
def test_adversarial_losses(name: str, loss: str) -> None:
    critic = reference_critic(name)
    (real, real_scores), (fake, fake_scores) = critic.scores_of("real"), critic.scores_of("fake")
    # Scores without loss leave one half of it, and the reference does not halve the halves.
    if loss == "dis":
        total = lsgan_critic_loss(real_scores, fake_scores)
        real_half = 2 * lsgan_critic_loss(real_scores, torch.zeros_like(fake_scores))
        fake_half = 2 * lsgan_critic_loss(torch.ones_like(real_scores), fake_scores)
    else:
        total = lsgan_policy_loss(fake_scores, real_scores=real_scores)
        perfect = torch.ones_like(fake_scores)
        real_half = 2 * lsgan_policy_loss(perfect, real_scores=real_scores)
        fake_half = 2 * lsgan_policy_loss(fake_scores)
    agree(total, critic.io[f"loss_{loss}_total"])
    agree(real_half, critic.io[f"loss_{loss}_real"])
    agree(fake_half, critic.io[f"loss_{loss}_fake"])
    agree(gradient(total, real), critic.io[f"grad_real_{loss}_total"])
    agree(gradient(total, fake), critic.io[f"grad_fake_{loss}_total"])
    agree(gradient(real_half, real), critic.io[f"grad_real_{loss}_real"])
    agree(gradient(fake_half, fake), critic.io[f"grad_fake_{loss}_fake"])


@each_critic
def test_policy_gets_half_the_gradient_of_the_released_fake_loss(name: str) -> None:
    critic = reference_critic(name)
    fake, scores = critic.scores_of("fake")
    agree(gradient(lsgan_policy_loss(scores), fake), critic.io["grad_fake_gen_total"])


@each_critic
def test_logged_adversarial_loss(name: str) -> None:
    critic = reference_critic(name)
    loss = lsgan_policy_loss(critic.scores_of("fake")[1], real_scores=critic.scores_of("real")[1])
    agree(loss, critic.io["gen_adv_loss"])


@each_critic
def test_critic_accuracies(name: str) -> None:
    critic = reference_critic(name)
    for which, is_real in (("real", True), ("fake", False)):
        accuracy = critic_accuracy(critic.scores_of(which)[1], is_real)
        for logged in (f"gen_{which}_acc", f"step/{which}_acc"):
            assert accuracy.item() == pytest.approx(critic.io[logged].item(), rel=1e-6)


@each_critic
def test_one_clipped_adam_step(name: str) -> None:
    critic = reference_critic(name)
    adam = torch.optim.Adam(critic.network.parameters(), lr=1e-4)
    lsgan_critic_loss(critic.scores_of("real")[1], critic.scores_of("fake")[1]).backward()
    norm = nn.utils.clip_grad_norm_(critic.network.parameters(), 1)
    agree(norm, critic.io["step/grad_norm_before_clip"])
    compared = 0
    for parameter, clipped in critic.reference_parameters("step/clipped_grad/"):
        agree(parameter.grad, clipped)
        compared += 1
    adam.step()
    for parameter, after in critic.reference_parameters("step/param_after/"):
        agree(parameter.detach(), after)
        compared += 1
    assert compared >= 12


def test_default_sizes_are_the_official_ones() -> None:
    networks = (
        PartKCSDiscriminator(H36M_16),
        KeypointDiscriminator(H36M_16),
        RegressorPolicy(H36M_16),
    )
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == DISCRIMINATORS["default_num_params"].tolist()


# -- augmentor -------------------------------------------------------------------------------------


class Augmented(NamedTuple):
    """One pass of the reference's augmentor through our policy, and what the reference got."""

    policy: RegressorPolicy
    joints: Tensor  # (B, J, 3), a leaf
    raw: RawParameters
    parameters: AugmentationParameters
    poses: AugmentedPoses
    expected: dict[str, Tensor]

    def outputs(self) -> dict[str, Tensor]:
        """By the reference's names, without our axis of frames."""
        bent, scaled, moved = (stage[:, 0] for stage in self.poses)
        return {
            "pose_ba": bent,
            "pose_bl": scaled,
            "pose_rt": moved,
            "ba_diff": bone_angle_change(self.joints, bent, H36M_16),
        }

    def range_loss(self) -> Tensor:
        """The released range penalty; its settings are the reference's defaults."""
        centre, half_width = (
            LOSSES[f"diff_range_loss/mean_gamma/{k}"].item() for k in ("b", "std")
        )
        limit = LOSSES["rectifiedL2loss/threshold"].item()
        first_of_group = [H36M_16.bone_length_groups.index(g) for g in range(9)]
        ratios = self.parameters.bone_length_ratio[:, 0, first_of_group]
        turned = self.outputs()["ba_diff"].mean(-1)
        return dead_zone(turned, centre, half_width).mean() + dead_zone(ratios, 0, limit).mean()


def augmented(mode: str) -> Augmented:
    policy = load_reference_policy(below(AUGMENTOR, "G/"))
    policy.train(mode == "train")
    expected = below(AUGMENTOR, f"{mode}/")
    names = ("noise_1_ba", "noise_2_bl", "noise_3_rt_R", "noise_4_rt_T")
    noise = torch.cat([expected[name] for name in names], 1)
    joints = leaf(AUGMENTOR["inputs_3d"])
    # In parts, and not by forward(), so that batch norm counts one pass.
    raw = policy.regress(joints[:, None], noise)
    parameters = policy.bound(joints[:, None], raw)
    poses = apply_augmentation(joints[:, None], parameters, H36M_16)
    return Augmented(policy, joints, raw, parameters, poses, expected)


each_mode = pytest.mark.parametrize("mode", ["eval", "train"])


@each_mode
def test_raw_parameters(mode: str) -> None:
    own = augmented(mode)
    for raw, name in zip(own.raw, ("ba_raw", "bl_raw", "r_raw", "t_raw"), strict=True):
        agree(raw, own.expected[name])


@each_mode
def test_bone_length_ratios(mode: str) -> None:
    own = augmented(mode)
    ratios = own.expected["blr"][:, H36M_16.bone_length_groups]
    agree(own.parameters.bone_length_ratio[:, 0], ratios)


@each_mode
def test_translation(mode: str) -> None:
    own = augmented(mode)
    agree(own.parameters.translation, own.expected["t"])


@each_mode
def test_rotation(mode: str) -> None:
    own = augmented(mode)
    agree(own.parameters.rotation[:, 0], own.expected["rot_matrix"], TORCHGEOMETRY)


@each_mode
def test_rotation_is_the_exact_exponential(mode: str) -> None:
    # The reference's axis angles are exact, so here rounding is all that may differ.
    own = augmented(mode)
    x, y, z = own.expected["r_axis_angle"].unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    agree(own.parameters.rotation[:, 0], torch.linalg.matrix_exp(cross))


@each_mode
@pytest.mark.parametrize(
    ("stage", "tolerance"), [("pose_ba", 1e-9), ("pose_bl", 1e-9), ("pose_rt", TORCHGEOMETRY)]
)
def test_stages(mode: str, stage: str, tolerance: float) -> None:
    own = augmented(mode)
    agree(own.outputs()[stage], own.expected[stage], tolerance)


@each_mode
def test_bent_directions(mode: str) -> None:
    own = augmented(mode)
    directions = bone_directions(joints_to_bones(own.outputs()["pose_ba"], H36M_16))
    agree(directions, own.expected["pose_ba_bone_unit"])


@each_mode
def test_bone_angle_change(mode: str) -> None:
    own = augmented(mode)
    agree(own.outputs()["ba_diff"], own.expected["ba_diff"])


@each_mode
def test_range_loss_of_the_augmentor(mode: str) -> None:
    own = augmented(mode)
    agree(own.range_loss(), own.expected["loss_diff"])


@each_mode
@pytest.mark.parametrize("of", ["pose_rt", "pose_ba", "pose_bl", "ba_diff", "loss_diff"])
def test_augmentor_gradients(mode: str, of: str) -> None:
    own = augmented(mode)
    loss = own.range_loss() if of == "loss_diff" else own.outputs()[of]
    weights = None if of == "loss_diff" else AUGMENTOR[f"w_{of}"]
    leaves = {"inputs_3d": own.joints}
    for head, (network, *_, last) in zip(own.policy.network.heads, REFERENCE_BRANCHES, strict=True):
        leaves |= {f"{network}/{last}/{kind}": getattr(head, kind) for kind in ("weight", "bias")}
    expected = below(own.expected, f"grad_{of}/")
    assert "inputs_3d" in expected
    for name, numbers in expected.items():
        tolerance = TORCHGEOMETRY if of == "pose_rt" else 1e-9
        agree(gradient(loss, leaves[name], weights), numbers, tolerance)


def test_batch_norm_after_one_pass() -> None:
    own = augmented("train")
    for position, norm in enumerate(own.policy.network.norms):
        names = [f"state_after/{name}" for name in reference_norms(position)]
        for kind in ("running_mean", "running_var"):
            agree(getattr(norm, kind), torch.cat([own.expected[f"{n}/{kind}"] for n in names]))
        for name in names:
            assert norm.num_batches_tracked == own.expected[f"{name}/num_batches_tracked"]


def test_axis_angles() -> None:
    rotations = axis_angle_to_matrix(AUGMENTOR["axis_angle/in"])
    agree(rotations, AUGMENTOR["axis_angle/out"], TORCHGEOMETRY)


def test_axis_angle_gradients() -> None:
    axis_angles = leaf(AUGMENTOR["axis_angle/in"])
    rotations = axis_angle_to_matrix(axis_angles)
    actual = gradient(rotations, axis_angles, AUGMENTOR["axis_angle/grad_w"])
    assert actual.isfinite().all()  # torchgeometry's own is NaN at zero
    # Its 1e-6 next to the angle weighs more on small ones, so they are left to gradcheck.
    large = AUGMENTOR["axis_angle/in"].norm(dim=-1) > 0.3
    assert large.any()
    agree(actual[large], AUGMENTOR["axis_angle/grad_in"][large], TORCHGEOMETRY)


# -- camera ----------------------------------------------------------------------------------------

each_reference = pytest.mark.parametrize("reference", ["videopose3d", "poseaug"])
each_lens = pytest.mark.parametrize(
    ("lens", "distortion"), [("project_to_2d", True), ("project_to_2d_linear", False)]
)


def per_sample_intrinsics() -> Tensor:
    return CAMERA["intrinsics"][CAMERA["camera_index"]]


@each_reference
@each_lens
def test_clamped_projection(reference: str, lens: str, distortion: bool) -> None:
    expected = below(CAMERA, f"{reference}/{lens}/")
    points, intrinsics = leaf(CAMERA["points"]), leaf(per_sample_intrinsics())
    seen = project_points(points, intrinsics, distortion=distortion, clamp_rays=True)
    agree(seen, expected["out"])
    agree(gradient(seen, points, CAMERA["grad_w"]), expected["grad_points"])
    agree(gradient(seen, intrinsics, CAMERA["grad_w"]), expected["grad_intrinsics"])


@each_reference
@each_lens
def test_projection_where_the_reference_does_not_clamp(
    reference: str, lens: str, distortion: bool
) -> None:
    expected = below(CAMERA, f"{reference}/{lens}/")
    points = leaf(CAMERA["points"])
    seen = project_points(points, per_sample_intrinsics(), distortion=distortion)
    plain = ~CAMERA["clamped"].any(-1) & (CAMERA["points"][..., 2] > Z_NEAR)
    assert plain.any()
    agree(seen[plain], expected["out"][plain])
    slopes = gradient(seen, points, CAMERA["grad_w"])
    agree(slopes[plain], expected["grad_points"][plain])


def test_screen_normalisation() -> None:
    for i, (width, height) in enumerate(CAMERA["screen/wh"].tolist()):
        normalized = normalize_screen_coordinates(CAMERA["screen/pixels"][i], width, height)
        agree(normalized, CAMERA["screen/normalized"][i])


def test_image_coordinates() -> None:
    for i, (width, height) in enumerate(CAMERA["screen/wh"].tolist()):
        pixels = image_coordinates(CAMERA["screen/normalized_in"][i], width, height)
        agree(pixels, CAMERA["screen/image_coordinates"][i])


def test_principal_points_are_normalised_like_pixels() -> None:
    for i, (width, height) in enumerate(CAMERA["resolution"].tolist()):
        centre = normalize_screen_coordinates(CAMERA["raw_center_px"][i], width, height)
        # The loaders round to float32.
        torch.testing.assert_close(centre, CAMERA["intrinsics"][i, 2:4], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "name"),
    [(world_to_camera, "world_to_camera"), (camera_to_world, "camera_to_world")],
)
def test_extrinsics(function: Callable[..., Tensor], name: str) -> None:
    orientation, translation = (
        CAMERA[f"extrinsics/{k}"][:, None, None] for k in ("quaternion", "translation")
    )
    agree(function(CAMERA[f"{name}/in"], orientation, translation), CAMERA[f"{name}/out"])


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["scalar_center", "mean_gamma"])
def test_dead_zone(case: str) -> None:
    own = below(LOSSES, f"diff_range_loss/{case}/")
    values = leaf(own["a"])
    loss = dead_zone(values, own["b"].item(), own["std"].item()).mean()
    agree(loss, own["out"])
    agree(gradient(loss, values), own["grad_a"])


def test_dead_zone_around_several_centres() -> None:
    own = below(LOSSES, "diff_range_loss/tensor_center/")
    values = leaf(own["a"])
    loss = dead_zone(values - own["b"], 0.0, own["std"].item()).mean()
    agree(loss, own["out"])
    agree(gradient(loss, values), own["grad_a"])


def test_dead_zone_around_zero_is_the_rectified_loss() -> None:
    own = below(LOSSES, "rectifiedL2loss/")
    ratios = leaf(own["gamma"])
    loss = dead_zone(ratios, 0.0, own["threshold"].item()).mean()
    agree(loss, own["out"])
    agree(gradient(loss, ratios), own["grad_gamma"])


def test_range_loss_is_the_sum_of_two_dead_zones() -> None:
    own = below(LOSSES, "get_diff_loss/")
    centre, half_width = (LOSSES[f"diff_range_loss/mean_gamma/{k}"].item() for k in ("b", "std"))
    turned, ratios = leaf(own["ba_diff"]), leaf(own["blr"])
    angle = dead_zone(turned.mean(-1), centre, half_width).mean()
    length = dead_zone(ratios, 0.0, LOSSES["rectifiedL2loss/threshold"].item()).mean()
    agree(angle, own["log/train_G_iter_diff_loss_loss_diff_angle"])
    agree(length, own["log/train_G_iter_diff_loss_loss_diff_blr"])
    agree(angle + length, own["out"])
    agree(gradient(angle + length, turned), own["grad_ba_diff"])
    agree(gradient(angle + length, ratios), own["grad_blr"])


# -- feedback --------------------------------------------------------------------------------------

EPOCHS: list[int] = LOSSES["feedback/epochs"].tolist()
SOURCES = {"origin": "inputs", "ba": "outputs", "rt": "outputs"}


def source_names(which: str) -> tuple[str, str]:
    """Keys of the 2D and of the 3D poses of one of the three kinds."""
    ending = "" if which == "origin" else f"_{which}"
    return f"{SOURCES[which]}_2d{ending}", f"{SOURCES[which]}_3d{ending}"


def reference_errors(keypoints: Tensor, joints: Tensor, kind: str) -> Tensor:
    """Errors of the linear estimator of the golden file."""
    predicted = keypoints.flatten(1) @ LOSSES["posenet/weight"].T + LOSSES["posenet/bias"]
    target = root_relative(joints, H36M_16)
    return estimator_errors(predicted.view_as(target)[:, None], target[:, None], kind, H36M_16)


def errors_of(which: str, kind: str) -> Tensor:
    return reference_errors(*(LOSSES[f"feedback/{name}"] for name in source_names(which)), kind)


def reference_ramp(column: int) -> Ramp:
    """The straight line through the hard ratios of the first and of the last recorded epoch."""
    ratios = LOSSES["feedback/hardratio_ba_rt"][:, column].tolist()
    total = LOSSES["feedback/total_epochs"].item()
    slope = (ratios[-1] - ratios[0]) / (EPOCHS[-1] - EPOCHS[0]) * total
    start = ratios[0] - slope * EPOCHS[0] / total
    return Ramp(start, start + slope)


def target_ratios(epoch: int) -> list[float]:
    progress = epoch / LOSSES["feedback/total_epochs"].item()
    return [reference_ramp(column).at(progress) for column in (0, 1)]


@pytest.mark.parametrize("which", ["origin", "ba", "rt"])
def test_grouped_errors(which: str) -> None:
    agree(errors_of(which, "grouped"), LOSSES[f"feedback/err_{which}"])


@pytest.mark.parametrize("column", [0, 1])
def test_hardness_ramps_are_straight(column: int) -> None:
    total = LOSSES["feedback/total_epochs"].item()
    values = [reference_ramp(column).at(epoch / total) for epoch in EPOCHS]
    recorded = LOSSES["feedback/hardratio_ba_rt"][:, column]
    agree(torch.tensor(values, dtype=torch.float64), recorded)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_released_feedback(epoch: int) -> None:
    expected = below(LOSSES, f"feedback/e{epoch:02}/")
    leaves = {n: leaf(LOSSES[f"feedback/{n}"]) for which in SOURCES for n in source_names(which)}
    origin, *harder = (
        reference_errors(*(leaves[name] for name in source_names(which)), "grouped")
        for which in SOURCES
    )
    tolerances = LOSSES["feedback/args_std_ba_rt"].tolist()
    factors = LOSSES["feedback/args_factorfeedback_ba_rt"].tolist()
    total = torch.zeros((), dtype=torch.float64)
    for name, errors, ratio, tolerance, factor in zip(
        ("ba", "rt"), harder, target_ratios(epoch), tolerances, factors, strict=True
    ):
        loss = released_feedback(errors, origin, ratio, tolerance)
        agree(loss.mean(), expected[f"{name}_hard_mean_loss"])
        agree((loss > 0).double().mean(), expected[f"{name}_active_fraction"])
        total = total + factor * loss.mean()
    agree(total, expected["loss"])
    for name, numbers in below(expected, "grad_").items():
        agree(gradient(total, leaves[name]), numbers)


KINDS = {
    "group_errors": "grouped",
    "mpjpe": "mpjpe",
    "mse": "mse",
    "sqnorm": "squared_norm",
}


@pytest.mark.parametrize("which", ["origin", "ba", "rt"])
@pytest.mark.parametrize("kind", ["mpjpe", "mse", "sqnorm"])
def test_estimator_errors(which: str, kind: str) -> None:
    agree(errors_of(which, KINDS[kind])[:, 0], LOSSES[f"paper/L_P_{which}_{kind}"])


@pytest.mark.parametrize("which", ["ba", "rt"])
@pytest.mark.parametrize("kind", KINDS)
def test_paper_feedback(which: str, kind: str) -> None:
    harder, easier = (errors_of(w, KINDS[kind]) for w in (which, "origin"))
    betas = LOSSES["paper/beta"].tolist()
    losses = torch.stack([paper_feedback(harder, easier, beta) for beta in betas])
    expected = LOSSES[f"paper/fb_{which}_{kind}"]
    agree(losses.reshape(expected.shape), expected)


@pytest.mark.parametrize("case", ["reg_ba", "reg_bl", "reg_bl_abs"])
def test_rectified_mean(case: str) -> None:
    own = below(LOSSES, f"paper/{case}/")
    each = rectified_mean(own["gamma"], own["threshold"].item())
    agree(each, own["per_sample_formula"])
    agree(each.mean(), own["mean_formula"])


@pytest.mark.parametrize("case", ["reg_ba", "reg_bl", "reg_bl_abs"])
def test_dead_zone_of_means(case: str) -> None:
    own = below(LOSSES, f"paper/{case}/")
    threshold, means = own["threshold"].item(), own["gamma"].mean(-1)
    agree(dead_zone(means, 0.0, threshold).mean(), own["reference_rectifiedL2_of_mean"])
    of_batch = dead_zone(means.mean(), 0.0, threshold)
    agree(of_batch, own["reference_rectifiedL2_of_batch_mean"])


@each_critic
@pytest.mark.parametrize("label", [0, 1])
def test_accuracy(name: str, label: int) -> None:
    accuracy = critic_accuracy(LOSSES[f"accuracy/{name}/pred"], bool(label))
    expected = LOSSES[f"accuracy/{name}/label{label}"].item()
    assert accuracy.item() == pytest.approx(expected, rel=1e-6)


# -- pool and learning rate ------------------------------------------------------------------------


def test_replaying_the_small_pool() -> None:
    own = below(LOSSES, "pool_small/")
    pool = FakePosePool(int(own["capacity"]), ()).double()
    draws, slots = iter(own["u"]), iter(own["slot"])
    out = []
    for sample in own["in"]:
        # The reference draws once the pool is full, and a place only for what it swaps.
        draw = next(draws) if len(pool) == pool.capacity else torch.zeros(())
        slot = next(slots) if draw > 0.5 else torch.zeros((), dtype=torch.int64)
        out.append(pool.exchange_with(sample[None], draw[None], slot[None]))
    assert torch.equal(torch.cat(out), own["out"])
    assert torch.equal(pool.items, own["final_items"])
    assert next(draws, None) is None
    assert next(slots, None) is None


def test_pool_of_official_size() -> None:
    facts = below(LOSSES, "pool/")
    capacity, fed = int(facts["capacity"]), int(facts["after_full_fed"])
    generator = torch.Generator().manual_seed(0)
    pool = FakePosePool(capacity, ()).double()
    originals = torch.arange(capacity, dtype=torch.float64)
    unchanged = pool.exchange(originals, generator) == originals
    assert unchanged.sum() == facts["fill_returned_unchanged"]
    fresh = torch.arange(capacity, capacity + fed, dtype=torch.float64)
    swapped = sum(
        int((pool.exchange(batch, generator) != batch).sum()) for batch in fresh.split(1024)
    )
    # Both are counts of coin flips, so five standard deviations of their difference.
    spread = (0.5 * fed) ** 0.5
    assert abs(swapped - int(facts["after_full_swapped"])) < 5 * spread
    assert len(pool) == facts["size_after"]
    left, expected = int((pool.items < capacity).sum()), facts["originals_left_expected"].item()
    assert abs(left - expected) < 5 * expected**0.5


def test_learning_rate_multiplier() -> None:
    expected = LOSSES["lr_multiplier_after_k_steps"]
    steps = len(expected)
    actual = [linear_decay(k / steps) for k in range(steps)]
    agree(torch.tensor(actual, dtype=torch.float64), expected)

"""The augmentor and its rotations against the numbers of the reference code.

See tests/golden/README.md. Nothing here depends on the numbers themselves: another set with the
same keys serves as well.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from helpers import (
    REFERENCE_BRANCHES,
    agree,
    below,
    generated,
    golden,
    gradient,
    leaf,
    load_reference_policy,
    reference_norms,
)
from torch import Tensor

from poseaug_plugin.augment.transforms import (
    AugmentationParameters,
    AugmentedPoses,
    apply_augmentation,
    bone_angle_change,
)
from poseaug_plugin.body.bones import bone_directions, joints_to_bones, root_relative
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.body.rotation import axis_angle_to_matrix
from poseaug_plugin.reference.recipes import dead_zone, released_range_term
from poseaug_plugin.reference.regressors import RegressorPolicy

AUGMENTOR, LOSSES = map(golden, ("augmentor", "losses"))

# torchgeometry divides by angle + 1e-6, so its rotations are off by up to 3e-6.
TORCHGEOMETRY = 1e-5


class Augmented(NamedTuple):
    """One pass of the reference's augmentor through our policy, and what the reference got."""

    policy: RegressorPolicy
    joints: Tensor  # (B, J, 3), a leaf
    raw: tuple[Tensor, ...]
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

    def range_term(self) -> Tensor:
        """The same as the term of the policy's loss, without its weight."""
        weight = LOSSES["feedback/args_factor_d2d_d3d_diff"][2]
        ratios = self.parameters.bone_length_ratio[:, 0]
        made = generated(self.joints, self.poses.bent[:, 0], ratio=ratios)
        return released_range_term(made) / weight


def augmented(mode: str) -> Augmented:
    policy = load_reference_policy(below(AUGMENTOR, "G/"))
    policy.train(mode == "train")
    expected = below(AUGMENTOR, f"{mode}/")
    names = ("noise_1_ba", "noise_2_bl", "noise_3_rt_R", "noise_4_rt_T")
    noise = torch.cat([expected[name] for name in names], 1)
    joints = leaf(AUGMENTOR["inputs_3d"])
    # In parts, and not by forward(), so that batch norm counts one pass.
    raw = policy.network(root_relative(joints, H36M_16), noise)
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
    agree(own.range_term(), own.expected["loss_diff"])


@each_mode
@pytest.mark.parametrize("of", ["pose_rt", "pose_ba", "pose_bl", "ba_diff", "loss_diff"])
def test_augmentor_gradients(mode: str, of: str) -> None:
    own = augmented(mode)
    losses = [own.range_loss(), own.range_term()] if of == "loss_diff" else [own.outputs()[of]]
    weights = None if of == "loss_diff" else AUGMENTOR[f"w_{of}"]
    leaves = {"inputs_3d": own.joints}
    for head, (network, *_, last) in zip(own.policy.network.heads, REFERENCE_BRANCHES, strict=True):
        leaves |= {f"{network}/{last}/{kind}": getattr(head, kind) for kind in ("weight", "bias")}
    expected = below(own.expected, f"grad_{of}/")
    assert "inputs_3d" in expected
    for name, numbers in expected.items():
        tolerance = TORCHGEOMETRY if of == "pose_rt" else 1e-9
        for loss in losses:
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

"""Bones, their Gram matrices and stretched bodies against the numbers of the reference code.

See tests/golden/README.md. Nothing here depends on the numbers themselves: another set with the
same keys serves as well.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import REFERENCE_PARTS, agree, below, golden, gradient, leaf, scaled_joints
from torch import Tensor

from poseaug_plugin.adversary.critics import PartKCSCritic
from poseaug_plugin.body.bones import (
    bone_directions,
    bone_lengths,
    bones_to_joints,
    joints_to_bones,
    per_bone,
    with_bone_lengths,
)
from poseaug_plugin.body.presets import H36M_16

KINEMATICS, KCS = map(golden, ("kinematics", "kcs"))


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


def part_gram(poses: Tensor, part: str) -> Tensor:
    """The Gram matrix that the critic of a part sees."""
    position = [name for name, _ in H36M_16.part_bones].index(REFERENCE_PARTS[part])
    critic = PartKCSCritic(H36M_16, width=1).double()
    seen: list[Tensor] = []
    critic.layer_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    critic(poses)
    whole = poses.new_zeros(len(poses), H36M_16.num_bones**2)
    gram = whole.index_add(1, critic.entries[position], seen[0][position].T)
    return gram.unflatten(1, (H36M_16.num_bones, -1))


def test_unit_skeleton() -> None:
    directions = bone_directions(joints_to_bones(KCS["poses"], H36M_16))
    agree(bones_to_joints(directions, H36M_16), KCS["unit_skeleton"])


@each_part
def test_part_gram_matrix(part: str) -> None:
    poses = leaf(KCS["poses"])
    gram = part_gram(poses, part)
    agree(gram, KCS[f"kcs_{part}"])
    agree(gradient(gram, poses, KCS[f"grad_w_{part}"]), KCS[f"grad_poses_{part}"])

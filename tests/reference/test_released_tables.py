"""What the released code reads off a skeleton, and its rays that stop at 45 degrees."""

from __future__ import annotations

import pytest
import torch
from helpers import PARENTS, PARTS, golden

from poseaug_plugin.body.presets import H36M_16, H36M_17, SKELETONS
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.reference.recipes import error_groups, joint_weights, project_clamped
from poseaug_plugin.reference.regressors import anchor_length_group, trunk_bones

each_preset = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)


def joint_sets(skeleton: Skeleton, groups: tuple[tuple[int, ...], ...]) -> list[set[str]]:
    return [{skeleton.joints[j] for j in group} for group in groups]


# -- the 16 joints of Human3.6M --------------------------------------------------------------------


def test_h36m_16_joint_weights() -> None:
    assert list(joint_weights(H36M_16)) == golden("losses")["feedback/joint_weights"].tolist()


def test_h36m_16_error_groups() -> None:
    # Released get_feedback_loss; the head counts as a middle joint, the trunk not at all.
    assert error_groups(H36M_16) == ((1, 4, 10, 13), (2, 5, 9, 11, 14), (3, 6, 12, 15))


def test_h36m_16_rigid_trunk() -> None:
    # Released BAGenerator: pelvis to spine and spine to thorax.
    assert trunk_bones(H36M_16) == (6, 7)


def test_h36m_16_anchor_length() -> None:
    # Released BLGenerator masks the fifth of the nine ratios: spine to thorax.
    assert anchor_length_group(H36M_16) == 4


# -- every preset ----------------------------------------------------------------------------------


@each_preset
def test_trunk_bones_carry_a_limb(skeleton: Skeleton) -> None:
    parents = skeleton.parent_indices
    carrying = {b for _, js in skeleton.limbs for b in skeleton.bones_to_root(parents[js[0]])}
    assert set(trunk_bones(skeleton)) == carrying


@each_preset
def test_the_anchor_length_is_one_of_the_trunk(skeleton: Skeleton) -> None:
    groups = {skeleton.bone_length_groups[b] for b in trunk_bones(skeleton)}
    assert anchor_length_group(skeleton) in groups


@each_preset
def test_error_groups_are_disjoint_and_mirrored(skeleton: Skeleton) -> None:
    flip, groups = skeleton.flip_permutation, error_groups(skeleton)
    assert len({j for group in groups for j in group}) == sum(map(len, groups))
    for group in groups:
        assert {flip[j] for j in group} == set(group)


@each_preset
def test_joint_weights_are_mirrored(skeleton: Skeleton) -> None:
    weights = joint_weights(skeleton)
    assert [weights[j] for j in skeleton.flip_permutation] == list(weights)


def test_shoulders_hips_and_first_limb_joints_weigh_most() -> None:
    weights = dict(zip(H36M_17.joints, joint_weights(H36M_17), strict=True))
    assert {joint for joint, weight in weights.items() if weight == 5} == {
        "left_hip",
        "right_hip",
        "left_shoulder",
        "right_shoulder",
    }


def test_the_seventeenth_joint_is_a_middle_one() -> None:
    assert joint_sets(H36M_17, error_groups(H36M_17))[1] == {
        *joint_sets(H36M_16, error_groups(H36M_16))[1],
        "neck",
    }


# -- a skeleton of one's own -----------------------------------------------------------------------


def test_tables_of_a_skeleton_of_ones_own() -> None:
    skeleton = Skeleton("own", PARENTS, PARTS)
    assert trunk_bones(skeleton) == (1,)
    assert anchor_length_group(skeleton) == 1
    assert joint_weights(skeleton) == (2, 1, 1, 5, 5, 2, 1)
    assert error_groups(skeleton) == ((3, 4), (0, 5, 6))  # no limb has a third joint


def test_limbs_at_the_root_leave_no_anchor() -> None:
    parents = {"hip": None, "left_leg": "hip", "right_leg": "hip"}
    parts = {"torso": ["hip"], "left": ["left_leg"], "right": ["right_leg"]}
    skeleton = Skeleton("legs", parents, parts)
    assert trunk_bones(skeleton) == ()
    assert anchor_length_group(skeleton) is None


# -- rays ------------------------------------------------------------------------------------------


def test_clamped_rays_stop_at_45_degrees() -> None:
    points = torch.tensor([[[9.0, -0.5, 1.0], [-9.0, 0.5, 1.0]]], dtype=torch.float64)
    pinhole = torch.tensor([[2.0, 2.0, *[0.0] * 7]], dtype=torch.float64)
    seen = project_clamped(points, pinhole)
    assert seen.tolist() == [[[2.0, -1.0], [-2.0, 1.0]]]

"""Where a pose stands, from where it is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import agree, h36m_intrinsics, human_poses
from random_bodies import generator, normal
from torch import Tensor

from poseaug_plugin.body.bones import root_relative
from poseaug_plugin.body.camera import project_points, solve_root
from poseaug_plugin.body.presets import H36M_16, SKELETONS
from poseaug_plugin.body.skeleton import Skeleton


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
    root, found = solve_root(keypoints, root_relative(joints, skeleton), intrinsics)
    assert found.all()
    # Undistortion is iterated, so a distorted one is exact to nanometres only.
    agree(root, joints[:, :, skeleton.root], 1e-9 if distortion else 1e-12)


def test_the_root_of_noisy_keypoints_is_the_least_squares_one() -> None:
    joints, keypoints, intrinsics = seen_poses(distortion=False, frames=1)
    noisy = keypoints + 0.01 * normal(*keypoints.shape)
    relative = root_relative(joints, H36M_16)
    root, _ = solve_root(noisy, relative, intrinsics)
    for sample in range(len(joints)):
        rows, targets = [], []
        for joint in range(H36M_16.num_joints):
            slopes = (noisy[sample, 0, joint] - intrinsics[sample, 2:4]) / intrinsics[sample, :2]
            x, y, z = relative[sample, 0, joint].tolist()
            a, b = slopes.tolist()
            rows += [[1, 0, -a], [0, 1, -b]]
            targets += [a * z - x, b * z - y]
        expected = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
        agree(root[sample, 0], torch.from_numpy(expected))


def test_a_pose_that_is_one_point_has_no_depth() -> None:
    joints, keypoints, intrinsics = seen_poses(distortion=True)
    root, found = solve_root(keypoints[:, :, :1].expand_as(keypoints), 0 * joints, intrinsics)
    assert not found.any()
    assert root.isfinite().all()


def test_a_pose_seen_from_behind_the_camera_is_not_found() -> None:
    # 1/z with a negative z: the keypoints fit a pose behind the camera only.
    joints, _, intrinsics = seen_poses(distortion=False)
    behind = joints - torch.tensor([0.0, 0.0, 10.0])
    keypoints = intrinsics[:, None, None, :2] * behind[..., :2] / behind[..., 2:]
    keypoints = keypoints + intrinsics[:, None, None, 2:4]
    root, found = solve_root(keypoints, root_relative(joints, H36M_16), intrinsics)
    agree(root, behind[:, :, H36M_16.root])
    assert not found.any()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_keypoint_spoils_its_own_pose_only(broken: float) -> None:
    joints, keypoints, intrinsics = seen_poses(distortion=True)
    keypoints[3, 1, 5, 0] = broken
    _, found = solve_root(keypoints, root_relative(joints, H36M_16), intrinsics)
    assert (~found).nonzero().tolist() == [[3, 1]]

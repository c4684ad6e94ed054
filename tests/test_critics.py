"""What critics compare: whose poses are real, what gets into a pool, and who can judge a window."""

from __future__ import annotations

import pytest
import torch
from loops import absolute_batch

from poseaug_plugin import H36M_16, PoseAugConfig
from poseaug_plugin.adapters import CanonicalPoses
from poseaug_plugin.critics import able_to_judge, compared_by
from poseaug_plugin.objectives import Generated
from poseaug_plugin.training import PolicyTrainer


def trained_on(frames: int = 1, **given: torch.Tensor) -> tuple[PolicyTrainer, Generated]:
    """A trainer, and what it made of a batch of 16 windows."""
    config = PoseAugConfig(pool_capacity=16, share=1.0, width=8)
    trainer = PolicyTrainer(H36M_16, config, torch.device("cpu"), **given)
    camera, joints, keypoints = absolute_batch(frames=frames)
    poses = CanonicalPoses(joints, keypoints, camera)
    with torch.no_grad():
        return trainer, trainer.augmenter.generate(trainer.augment(poses).draft)


@pytest.mark.parametrize(("name", "channels"), [("3d", 3), ("2d", 2)])
def test_given_poses_stand_for_real_ones(name: str, channels: int) -> None:
    poses = torch.randn(5, 16, channels)
    trainer, generated = trained_on(**{f"real_poses_{name}": poses})
    generated = generated._replace(weights=torch.zeros(16))  # of the batch's own poses
    for critic in trainer.critics[:2]:
        real, _, weights = compared_by(critic, generated, H36M_16, trainer.execution)
        is_given = [any(torch.equal(pose, p) for p in poses) for pose in real]
        assert all(is_given) if critic.name == name else not any(is_given)
        assert weights.tolist() == [float(critic.name == name)] * 16


def test_no_pool_holds_a_pose_that_is_not_finite() -> None:
    trainer, generated = trained_on()
    bent = generated.poses.bent.clone()
    bent[3, 0, 5, 1], bent[7] = torch.nan, torch.inf
    generated = generated._replace(poses=generated.poses._replace(bent=bent))
    _, fake, _ = compared_by(trainer.critics[0], generated, H36M_16, trainer.execution)
    assert [i for i, pose in enumerate(fake) if not pose.any()] == [3, 7]
    assert trainer.critics[0].pool.items.isfinite().all()


@pytest.mark.parametrize(("frames", "judges"), [(1, 2), (2, 2), (3, 3), (9, 3)])
def test_motion_takes_three_frames_to_see(frames: int, judges: int) -> None:
    trainer, generated = trained_on(frames)
    assert len(able_to_judge(trainer.critics, generated)) == judges

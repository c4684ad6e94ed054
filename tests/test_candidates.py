"""Of several draws of a pose the one is used whose picture the 2D critic finds most human."""

from __future__ import annotations

import pytest
import torch
from loops import absolute_batch, make_hook, make_lifter
from torch import Tensor, nn

from poseaug_plugin import H36M_16, PoseAugConfig, PoseAugError
from poseaug_plugin.adapters import CanonicalPoses
from poseaug_plugin.config import PRESETS
from poseaug_plugin.generation import Augmented
from poseaug_plugin.training import PolicyTrainer
from poseaug_plugin.windows import one_frame

SIZE = 64


class Leftmost(nn.Module):
    """A critic to whom people on the left are human."""

    def forward(self, keypoints: Tensor) -> Tensor:
        return -keypoints[..., 0].mean(1, keepdim=True)


class Nobody(nn.Module):
    """A critic that finds the same of everybody."""

    def forward(self, keypoints: Tensor) -> Tensor:
        return torch.zeros(keypoints.shape[0], 1)


def augmented_by(
    judge: nn.Module, candidates: int, *, frames: int = 1, **options: object
) -> tuple[PolicyTrainer, Augmented]:
    """A trainer whose 2D critic is another, and what it made of a batch."""
    config = PoseAugConfig(candidates=candidates, share=1.0, width=8, **options)
    trainer = PolicyTrainer(H36M_16, config, torch.device("cpu"))
    if trainer.augmenter.judge is not None:
        trainer.augmenter.judge = judge
    camera, joints, keypoints = absolute_batch(SIZE, frames=frames)
    return trainer, trainer.augment(CanonicalPoses(joints, keypoints, camera))


def score(augmented: Augmented) -> Tensor:
    """(B,) what `Leftmost` says of the frame that it was asked about; in the batch's order."""
    seen = one_frame(augmented.keypoints[augmented.rows], augmented.draft.judged_frame)
    return Leftmost()(seen).squeeze(-1)


@pytest.mark.parametrize("frames", [1, 5])
def test_the_candidate_with_the_best_score_is_used(frames: int) -> None:
    (_, one), (_, two), (_, five) = (augmented_by(Leftmost(), n, frames=frames) for n in (1, 2, 5))
    # The first candidates are the same ones, so that a choice can only be better.
    assert torch.equal(one.rows, two.rows)
    assert (score(two) >= score(one)).all()
    assert (score(five) >= score(two)).all()
    kept = (score(two) == score(one)).float().mean()
    assert 0.25 < kept < 0.75
    assert (score(five) == score(one)).float().mean() < 0.45


def test_of_equal_ones_the_first_is_used() -> None:
    (_, one), (_, three) = (augmented_by(Nobody(), n) for n in (1, 3))
    assert torch.equal(one.joints, three.joints)
    assert torch.equal(one.draft.noise, three.draft.noise)


def test_the_draft_gives_the_chosen_poses_again() -> None:
    trainer, augmented = augmented_by(Leftmost(), 3)
    made = trainer.augmenter.make(augmented.draft)
    assert augmented.valid.all()
    assert torch.equal(made.poses.moved, augmented.joints[augmented.rows])
    assert torch.equal(made.keypoints, augmented.keypoints[augmented.rows])


def test_a_candidate_that_is_out_of_frame_is_not_used() -> None:
    # Far to the left is out of the frame, which is what this critic likes best.
    wide = {"aspect_ratio": 0.35}
    (_, one), (_, five) = (augmented_by(Leftmost(), n, **wide) for n in (1, 5))
    assert 0.1 < one.valid.float().mean() < 0.7
    assert five.valid.float().mean() > one.valid.float().mean() + 0.15


def test_the_trainers_own_2d_critic_chooses() -> None:
    trainer, _ = augmented_by(Nobody(), 1)
    trainer = PolicyTrainer(H36M_16, trainer.config, torch.device("cpu"))
    critics = {critic.name: critic.network for critic in trainer.critics}
    assert trainer.augmenter.judge is critics["2d"]


@pytest.mark.parametrize("preset", ["random", "released", "paper"])
def test_other_presets_draw_once(preset: str) -> None:
    assert PRESETS[preset].candidates == 1


def test_without_critics_nobody_chooses() -> None:
    (_, one), (_, three) = (augmented_by(Nobody(), n, augmentor="random") for n in (1, 3))
    assert torch.equal(one.joints, three.joints)


@pytest.mark.parametrize("candidates", [0, 1.5, True])
def test_candidates_are_counted(candidates: object) -> None:
    with pytest.raises(PoseAugError, match="candidates must"):
        make_hook(make_lifter(), candidates=candidates)

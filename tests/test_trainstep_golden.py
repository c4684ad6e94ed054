"""One whole iteration of the released `train_gan`, recorded in `losses.npz`, with our parts.

Nothing here depends on the numbers themselves: another set with the same keys serves as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from helpers import (
    REFERENCE_BRANCHES,
    agree,
    below,
    golden,
    load_reference_critic_2d,
    load_reference_critic_3d,
    load_reference_policy,
)
from torch import Tensor, nn

from poseaug_plugin.adapters import CanonicalPoses
from poseaug_plugin.augmentation import AugmentationParameters, bone_angle_change
from poseaug_plugin.camera import project_points
from poseaug_plugin.config import RELEASED, PoseAugConfig
from poseaug_plugin.generation import Augmented
from poseaug_plugin.guarded import GuardedAdam
from poseaug_plugin.losses import (
    critic_accuracy,
    estimator_errors,
    lsgan_critic_loss,
)
from poseaug_plugin.objectives import Generated, PolicyLosses, policy_objective
from poseaug_plugin.policy import Policy
from poseaug_plugin.pool import FakePosePool
from poseaug_plugin.regressor_policy import RegressorPolicy
from poseaug_plugin.rigid import root_relative
from poseaug_plugin.skeletons import H36M_16
from poseaug_plugin.training import PolicyTrainer

LOSSES = golden("losses")
STEP = below(LOSSES, "trainstep/")
TOTAL = int(LOSSES["feedback/total_epochs"])
EPOCHS = sorted({int(key[1:3]) for key in STEP if key[0] == "e" and key[1:3].isdigit()})

EXACT = 1e-9
# torchgeometry divides by angle + 1e-6: so far off is whatever the rotation enters.
TORCHGEOMETRY = 1e-5

each_epoch = pytest.mark.parametrize("epoch", EPOCHS)


class WithRecordedNoise(Policy):
    """The reference's augmentor, with the noise that it drew."""

    noise_size = 0

    def __init__(self) -> None:
        super().__init__()
        self.own = load_reference_policy(below(golden("augmentor"), "G/"))
        names = ("noise_1_ba", "noise_2_bl", "noise_3_rt_R", "noise_4_rt_T")
        self.noise = torch.cat([STEP[name] for name in names], 1)

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        return self.own(joints, self.noise)


class Iteration(NamedTuple):
    """Our parts in the state of the reference's, after the policy's losses."""

    trainer: PolicyTrainer
    policy: RegressorPolicy
    critics: dict[str, nn.Module]
    config: PoseAugConfig
    augmented: Augmented
    generated: Generated
    losses: PolicyLosses
    expected: dict[str, Tensor]

    def scalar(self, name: str) -> Tensor:
        """What the reference logged."""
        return self.expected[f"scalar/train_G_iter_{name}"]

    def poses(self, name: str) -> tuple[Tensor, Tensor]:
        """Clean and generated poses that a critic sees."""
        clean, fake = {
            "3d": (self.generated.clean, self.generated.poses.bent),
            "2d": (self.generated.clean_keypoints, self.generated.keypoints),
        }[name]
        return clean[:, 0], fake[:, 0]

    def errors(self, which: str) -> Tensor:
        """The estimator's grouped errors on original, bent and moved poses."""
        joints = {
            "origin": self.generated.clean,
            "ba": self.generated.poses.bent,
            "rt": self.generated.poses.moved,
        }[which]
        keypoints = project_points(joints, self.generated.intrinsics, clamp_rays=True)
        return posenet_error(keypoints, joints).detach()


def posenet_error(keypoints: Tensor, joints: Tensor) -> Tensor:
    """Error of the recorded linear estimator."""
    predicted = keypoints.flatten(1) @ LOSSES["posenet/weight"].T + LOSSES["posenet/bias"]
    target = root_relative(joints, H36M_16)
    return estimator_errors(predicted.view_as(target), target, RELEASED.error, H36M_16)


def iteration(epoch: int, **options: Any) -> Iteration:
    discriminators = golden("discriminators")
    critics = {
        "3d": load_reference_critic_3d(below(discriminators, "d3d/")),
        "2d": load_reference_critic_2d(below(discriminators, "d2d/")),
    }
    # Appended rather than mixed in, so that the samples stay in order.
    config = replace(RELEASED, total_updates=TOTAL, mix="append", **options)
    policy = WithRecordedNoise()
    trainer = PolicyTrainer(H36M_16, config, torch.device("cpu"), policy=policy)
    joints, intrinsics = STEP["inputs_3d"][:, None], STEP["intrinsics"]
    keypoints = project_points(joints, intrinsics, clamp_rays=config.clamp_rays)
    augmented = trainer.augmenter.augment(CanonicalPoses(joints, keypoints, intrinsics))
    generated = trainer.augmenter.generate(augmented.draft)
    losses = policy_objective(
        generated,
        critics["3d"],
        critics["2d"],
        posenet_error,
        config,
        H36M_16,
        progress=epoch / TOTAL,
    )
    expected = below(STEP, f"e{epoch:02}/")
    return Iteration(trainer, policy.own, critics, config, augmented, generated, losses, expected)


@lru_cache
def recorded(epoch: int) -> Iteration:
    """For looking at; whoever changes weights takes an `iteration` of its own."""
    return iteration(epoch)


def test_epochs_with_and_without_feedback_were_recorded() -> None:
    warmup = RELEASED.warmup * TOTAL
    assert {epoch > warmup for epoch in EPOCHS} == {False, True}


# -- the policy's losses ---------------------------------------------------------------------------


@each_epoch
@pytest.mark.parametrize(("name", "tolerance"), [("3d", EXACT), ("2d", TORCHGEOMETRY)])
def test_adversarial_loss(epoch: int, name: str, tolerance: float) -> None:
    own = recorded(epoch)
    term, weight = {
        "3d": (own.losses.adversarial_3d, own.config.weight_3d),
        "2d": (own.losses.adversarial_2d, own.config.weight_2d),
    }[name]
    agree(term / weight, own.scalar(f"PoseAug_g{name}_adv_loss"), tolerance)


@each_epoch
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_accuracy_in_the_policys_step(epoch: int, name: str) -> None:
    own = recorded(epoch)
    for poses, kind in zip(own.poses(name), ("real", "fake"), strict=True):
        accuracy = critic_accuracy(own.critics[name](poses), kind == "real")
        expected = own.scalar(f"PoseAug_g{name}_{kind}_acc").item()
        assert accuracy.item() == pytest.approx(expected, rel=1e-6)


@each_epoch
def test_range_losses(epoch: int) -> None:
    own = recorded(epoch)
    logged = [own.scalar(f"diff_loss_loss_diff_{name}") for name in ("angle", "blr")]
    agree(own.losses.range / own.config.range_weight, sum(logged))


@each_epoch
def test_logged_changes(epoch: int) -> None:
    own = recorded(epoch)
    turned = bone_angle_change(own.generated.clean, own.generated.poses.bent, H36M_16)
    agree(turned.mean(), own.scalar("diff_log_log_angle_diff"))
    first_of_group = [H36M_16.bone_length_groups.index(g) for g in range(9)]
    ratios = own.generated.parameters.bone_length_ratio[..., first_of_group]
    agree(ratios.mean(), own.scalar("diff_log_log_diff_blr"))


@each_epoch
@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("origin", "1_pos_pair_loss_origin"),
        ("ba", "2_pos_pair_loss_ba"),
        ("rt", "3_pos_pair_loss_rt"),
    ],
)
def test_estimator_errors(epoch: int, which: str, name: str) -> None:
    own = recorded(epoch)
    tolerance = TORCHGEOMETRY if which == "rt" else EXACT
    agree(own.errors(which).mean(), own.scalar(f"posenet_feedback_{name}"), tolerance)


@each_epoch
@pytest.mark.parametrize(("which", "tolerance"), [("ba", EXACT), ("rt", TORCHGEOMETRY)])
def test_hardness_ratios(epoch: int, which: str, tolerance: float) -> None:
    own = recorded(epoch)
    ratios = own.errors(which) / own.errors("origin")
    for statistic, value in (
        ("hard_mean", ratios.mean()),
        ("hard_std", ratios.std()),
        ("hard_sample", ratios[0].mean()),
    ):
        agree(value, own.scalar(f"posenet_feedback_{which}_{statistic}"), tolerance)


@each_epoch
@pytest.mark.parametrize("which", ["ba", "rt"])
def test_feedback_terms(epoch: int, which: str) -> None:
    # Alone, without the other term and without the warm-up.
    own = iteration(epoch, warmup=0.0, **{"moved_weight" if which == "ba" else "bent_weight": 0.0})
    weight = own.config.bent_weight if which == "ba" else own.config.moved_weight
    expected = own.scalar(f"posenet_feedback_{which}_hard_mean_loss")
    agree(own.losses.feedback / weight, expected, EXACT if which == "ba" else TORCHGEOMETRY)


@each_epoch
def test_feedback_waits_for_the_warmup(epoch: int) -> None:
    own = recorded(epoch)
    terms = {
        "ba": own.config.bent_weight * own.scalar("posenet_feedback_ba_hard_mean_loss"),
        "rt": own.config.moved_weight * own.scalar("posenet_feedback_rt_hard_mean_loss"),
    }
    waits = epoch <= LOSSES["feedback/warmup"]
    expected = torch.zeros((), dtype=torch.float64) if waits else sum(terms.values())
    agree(own.losses.feedback, expected, TORCHGEOMETRY)


@each_epoch
def test_total_loss_of_the_policy(epoch: int) -> None:
    own = recorded(epoch)
    agree(own.losses.total, own.scalar("gen_loss"), TORCHGEOMETRY)


# -- the policy's step -----------------------------------------------------------------------------


def last_layers(policy: RegressorPolicy) -> Iterator[tuple[str, nn.Parameter]]:
    """Our last layers by the reference's names."""
    for head, (network, *_, last) in zip(policy.network.heads, REFERENCE_BRANCHES, strict=True):
        for kind in ("weight", "bias"):
            yield f"{network}/{last}/{kind}", getattr(head, kind)


@each_epoch
def test_gradient_norm_before_clipping(epoch: int) -> None:
    own = recorded(epoch)
    gradients = torch.autograd.grad(
        own.losses.total, list(own.policy.parameters()), retain_graph=True
    )
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    agree(norm, own.expected["grad_norm_before_clip_G_d3d_d2d"][0], TORCHGEOMETRY)


def stepped(epoch: int) -> tuple[Iteration, dict[str, Tensor]]:
    """After the library's own step of the policy, and the gradients it took."""
    own = iteration(epoch)
    adam = GuardedAdam(own.policy, own.scalar("lr_now").item(), own.config.max_gradient_norm)
    taken: dict[str, Tensor] = {}

    def look(*_: Any) -> None:
        taken.update((name, p.grad.clone()) for name, p in last_layers(own.policy))

    adam.adam.register_step_pre_hook(look)
    skipped = adam.step(adam.gradients(own.losses.total), torch.tensor(True))
    assert not skipped
    return own, taken


@each_epoch
def test_clipped_gradients(epoch: int) -> None:
    own, taken = stepped(epoch)
    expected = below(own.expected, "clipped_grad/")
    assert set(taken) == set(expected)
    for name, gradient in taken.items():
        agree(gradient, expected[name], TORCHGEOMETRY)


@each_epoch
def test_parameters_after_the_step(epoch: int) -> None:
    own, _ = stepped(epoch)
    for name, parameter in last_layers(own.policy):
        gradient = own.expected[f"clipped_grad/{name}"].abs()
        # Adam's first step is a full one whatever the size of a gradient, so that the sign of one
        # that is nothing but rounding decides; exact zeros stay.
        clear = (gradient > 10 * TORCHGEOMETRY * gradient.max()) | (gradient == 0)
        assert clear.double().mean() > 0.9
        after = own.expected[f"param_after/{name}"]
        agree(parameter.detach()[clear], after[clear], 1e-7)


@each_epoch
def test_step_changed_the_parameters(epoch: int) -> None:
    # Or else the test above would hold without any step.
    own = recorded(epoch)
    for name, parameter in last_layers(own.policy):
        change = (own.expected[f"param_after/{name}"] - parameter.detach()).abs().max()
        assert change > 0.9 * own.scalar("lr_now")


# -- the critics' step -----------------------------------------------------------------------------


def critic_scores(own: Iteration, name: str) -> tuple[Tensor, Tensor]:
    """Of the separate target poses and of what was generated, through the (empty) pool."""
    critic, (_, fake) = own.critics[name], own.poses(name)
    pool = FakePosePool(own.config.pool_capacity, fake.shape[1:]).double()
    return critic(STEP[f"target_{name}"]), critic(pool.exchange(fake))


each_critic = pytest.mark.parametrize(("name", "tolerance"), [("3d", EXACT), ("2d", TORCHGEOMETRY)])


@each_epoch
@each_critic
def test_critic_loss(epoch: int, name: str, tolerance: float) -> None:
    own = recorded(epoch)
    agree(
        lsgan_critic_loss(*critic_scores(own, name)),
        own.scalar(f"PoseAug_d{name}_dis_loss"),
        tolerance,
    )


@each_epoch
@each_critic
def test_critic_accuracy(epoch: int, name: str, tolerance: float) -> None:
    own = recorded(epoch)
    for scores, kind in zip(critic_scores(own, name), ("real", "fake"), strict=True):
        expected = own.scalar(f"PoseAug_d{name}_{kind}_acc").item()
        accuracy = critic_accuracy(scores, kind == "real").item()
        assert accuracy == pytest.approx(expected, rel=max(tolerance, 1e-6))


@each_epoch
@each_critic
def test_critic_gradient_norm(epoch: int, name: str, tolerance: float) -> None:
    own = recorded(epoch)
    loss = lsgan_critic_loss(*critic_scores(own, name))
    gradients = torch.autograd.grad(loss, list(own.critics[name].parameters()))
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    position = ["G", "3d", "2d"].index(name)
    agree(norm, own.expected["grad_norm_before_clip_G_d3d_d2d"][position], tolerance)


# -- what gets out ---------------------------------------------------------------------------------


@each_epoch
def test_number_of_kept_poses(epoch: int) -> None:
    own = recorded(epoch)
    assert own.augmented.valid.sum() == own.expected["kept_count"]


@each_epoch
def test_kept_poses(epoch: int) -> None:
    own = recorded(epoch)
    joints, keypoints = (
        out[-len(own.augmented.valid) :][own.augmented.valid, 0]
        for out in (own.augmented.joints, own.augmented.keypoints)
    )
    agree(joints, own.expected["kept_pose_3d"], TORCHGEOMETRY)
    agree(keypoints, own.expected["kept_pose_2d"], TORCHGEOMETRY)


def test_every_scalar_with_a_counterpart_was_compared() -> None:
    # What is left: the released code logs the squared distance of the ratios' spread from its
    # target, and multiplies it by 0.
    ours = {
        *(f"PoseAug_g{n}_{k}" for n in ("3d", "2d") for k in ("real_acc", "fake_acc", "adv_loss")),
        *(f"PoseAug_d{n}_{k}" for n in ("3d", "2d") for k in ("real_acc", "fake_acc", "dis_loss")),
        *("diff_log_log_angle_diff", "diff_log_log_diff_blr"),
        *("diff_loss_loss_diff_angle", "diff_loss_loss_diff_blr"),
        *(
            f"posenet_feedback_{which}_{k}"
            for which in ("ba", "rt")
            for k in ("hard_std", "hard_mean", "hard_sample", "hard_mean_loss")
        ),
        "posenet_feedback_1_pos_pair_loss_origin",
        "posenet_feedback_2_pos_pair_loss_ba",
        "posenet_feedback_3_pos_pair_loss_rt",
        *("gen_loss", "lr_now"),
    }
    unused = {f"posenet_feedback_{which}_hard_std_loss" for which in ("ba", "rt")}
    for epoch in EPOCHS:
        logged = {key.removeprefix("train_G_iter_") for key in below(STEP, f"e{epoch:02}/scalar/")}
        assert logged == ours | unused

"""One whole iteration of the released `train_gan`, recorded in `losses.npz`, by the trainer.

The trainer of ``preset="released"`` gets the weights, the noise and the estimator of the recording.
Nothing here depends on the numbers themselves: another set with the same keys serves as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from helpers import (
    REFERENCE_BRANCHES,
    agree,
    below,
    generated,
    golden,
    lifted,
    load_reference_critic_2d,
    load_reference_critic_3d,
    load_reference_policy,
)
from torch import Tensor, nn
from typing_extensions import override

from poseaug_plugin.adversary.critics import (
    Critic,
    KeypointCritic,
    PartKCSCritic,
    critic_accuracy,
    lsgan_critic_loss,
)
from poseaug_plugin.augment.augmenter import AugmentedBatch
from poseaug_plugin.augment.policy import Policy
from poseaug_plugin.augment.transforms import (
    AugmentationParameters,
    GeneratedPoses,
    bone_angle_change,
)
from poseaug_plugin.body.bones import root_relative
from poseaug_plugin.body.poses import CanonicalPoses
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.host.adapter import HostPoses, PoseAdapter
from poseaug_plugin.options import Options, Surroundings, Training, UpdateContext
from poseaug_plugin.reference.recipes import Released, estimator_errors, project_clamped
from poseaug_plugin.reference.regressors import RegressorPolicy
from poseaug_plugin.runtime.isolation import TorchDefaults
from poseaug_plugin.trainer import Loss, Phase, Trainer

LOSSES, AUGMENTOR, DISCRIMINATORS = map(golden, ("losses", "augmentor", "discriminators"))
STEP = below(LOSSES, "trainstep/")
TOTAL = int(LOSSES["feedback/total_epochs"])
EPOCHS = sorted({int(key[1:3]) for key in STEP if key[0] == "e" and key[1:3].isdigit()})

WEIGHTS = dict(
    zip(("2d", "3d", "range"), LOSSES["feedback/args_factor_d2d_d3d_diff"].tolist(), strict=True)
)

EXACT = 1e-9
# torchgeometry divides by angle + 1e-6: so far off is whatever the rotation enters.
TORCHGEOMETRY = 1e-5

FIRST_BETA = 0.9  # Adam's

each_epoch = pytest.mark.parametrize("epoch", EPOCHS)

in_float64 = TorchDefaults(torch.float64, torch.device("cpu"))


class WithRecordedNoise(Policy):
    """The reference's augmentor, with the noise that it drew."""

    noise_size = 0

    def __init__(self) -> None:
        super().__init__()
        self.own = load_reference_policy(below(AUGMENTOR, "G/"))
        names = ("noise_1_ba", "noise_2_bl", "noise_3_rt_R", "noise_4_rt_T")
        self.noise = torch.cat([STEP[name] for name in names], 1)

    @override
    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        return self.own(joints, self.noise)


class RecordedEstimator(nn.Module):
    """The linear estimator that the reference asked."""

    @override
    def forward(self, keypoints: Tensor) -> Tensor:
        return keypoints.flatten(1) @ LOSSES["posenet/weight"].T + LOSSES["posenet/bias"]


class InFloat64(PoseAdapter):
    """Takes predictions in the precision in which they come."""

    @override
    def predicted_joints(self, prediction: Tensor, skeleton: Skeleton) -> Tensor:
        return prediction.view(len(prediction), 1, skeleton.num_joints, 3)


class Recorded(Released):
    """The preset with the critics' weights of the recording."""

    @override
    def build(self, options: Options, surroundings: Surroundings) -> Training:
        training = super().build(options, surroundings)
        recorded = {
            PartKCSCritic: load_reference_critic_3d(below(DISCRIMINATORS, "d3d/")),
            KeypointCritic: load_reference_critic_2d(below(DISCRIMINATORS, "d2d/")),
        }
        assert [type(critic) for critic in training.critics] == list(recorded)
        for critic in training.critics:  # also where the terms of the loss have them
            for name, layer in recorded[type(critic)].named_children():
                setattr(critic, name, layer)
        return training


class Iteration(NamedTuple):
    """Our trainer in the state of the reference's, after the policy's losses."""

    trainer: Trainer
    policy: RegressorPolicy
    preset: Released
    context: UpdateContext
    batch: AugmentedBatch
    generated: GeneratedPoses
    loss: Loss
    expected: dict[str, Tensor]

    def scalar(self, name: str) -> Tensor:
        """What the reference logged."""
        return self.expected[f"scalar/train_G_iter_{name}"]

    def phase(self, name: str) -> Phase:
        """Who learns."""
        return next(phase for phase in self.trainer.phases if phase.name == name)

    def critic(self, name: str) -> Critic:
        """The critic of 3D or of 2D."""
        network = self.phase(f"critic_{name}").network
        assert isinstance(network, Critic)
        return network

    def poses(self, name: str) -> tuple[Tensor, Tensor]:
        """Clean and generated poses that a critic sees."""
        critic = self.critic(name)
        return critic.real(self.generated), critic.fake(self.generated)

    def term(self, name: str) -> Tensor:
        """One of the policy's weighted terms."""
        return self.loss[1][f"policy/{name}"]

    def errors(self, which: str) -> Tensor:
        """The estimator's grouped errors on original, bent and moved poses."""
        joints = {
            "origin": self.generated.inputs.poses.joints,
            "ba": self.generated.poses.bent,
            "rt": self.generated.poses.moved,
        }[which]
        keypoints = project_clamped(joints, self.generated.intrinsics)
        predicted = RecordedEstimator()(keypoints)
        target = root_relative(joints, H36M_16)
        errors = estimator_errors(predicted.view_as(target), target, "grouped", H36M_16)
        return errors.detach()

    def compared(self, name: str) -> GeneratedPoses:
        """What the reference's critics learned from: separate target poses, and the generated."""
        target, (_, fake) = STEP[f"target_{name}"], self.poses(name)
        if name == "3d":
            return generated(target, fake)
        return generated(lifted(target), keypoints=fake)

    def critic_loss(self, name: str) -> Loss:
        """Of these poses, through the (empty) pool."""
        return self.phase(f"critic_{name}").loss(self.compared(name))


def iteration(epoch: int, **arguments: Any) -> Iteration:
    expected = below(STEP, f"e{epoch:02}/")
    rate = expected["scalar/train_G_iter_lr_now"].item()
    with in_float64.used():
        # The rate of the recorded moment, whatever of it decay has left. The width is of networks
        # that give way to the recorded ones.
        preset = Recorded(learning_rate=rate / (1 - epoch / TOTAL), width=8, **arguments)
        policy = WithRecordedNoise()
        # Appended rather than mixed in, so that the samples stay in order.
        options = Options(policy=policy, mix="append", total_updates=TOTAL)
        surroundings = Surroundings(
            RecordedEstimator(), InFloat64(), H36M_16, torch.Generator().manual_seed(0)
        )
        trainer = Trainer(preset, options, surroundings)
        trainer.num_updates = epoch
        joints, intrinsics = STEP["inputs_3d"][:, None], STEP["intrinsics"]
        keypoints = project_clamped(joints, intrinsics)
        batch = trainer.augment(CanonicalPoses(joints, keypoints, intrinsics))
        made = trainer.augmenter.generate(batch.inputs)
        context = UpdateContext(batch, HostPoses(keypoints, joints), in_float64)
        assert trainer._before_update is not None
        rate = trainer._before_update(epoch, context)
        for phase in trainer.phases:
            phase.optimizer.set_learning_rate(rate)
        loss = trainer.phases[0].loss(made)
    return Iteration(trainer, policy.own, preset, context, batch, made, loss, expected)


@lru_cache
def recorded(epoch: int) -> Iteration:
    """For looking at; whoever changes weights takes an `iteration` of its own."""
    return iteration(epoch)


def test_epochs_with_and_without_feedback_were_recorded() -> None:
    warmup = Released().warmup * TOTAL
    assert {epoch > warmup for epoch in EPOCHS} == {False, True}


# -- the policy's losses ---------------------------------------------------------------------------


@each_epoch
@pytest.mark.parametrize(("name", "tolerance"), [("3d", EXACT), ("2d", TORCHGEOMETRY)])
def test_adversarial_loss(epoch: int, name: str, tolerance: float) -> None:
    own = recorded(epoch)
    expected = own.scalar(f"PoseAug_g{name}_adv_loss")
    agree(own.term(f"critic_{name}") / WEIGHTS[name], expected, tolerance)


@each_epoch
@pytest.mark.parametrize("name", ["3d", "2d"])
def test_accuracy_in_the_policys_step(epoch: int, name: str) -> None:
    own = recorded(epoch)
    for poses, kind in zip(own.poses(name), ("real", "fake"), strict=True):
        accuracy = critic_accuracy(own.critic(name)(poses), kind == "real")
        expected = own.scalar(f"PoseAug_g{name}_{kind}_acc").item()
        assert accuracy.item() == pytest.approx(expected, rel=1e-6)


@each_epoch
def test_range_losses(epoch: int) -> None:
    own = recorded(epoch)
    logged = [own.scalar(f"diff_loss_loss_diff_{name}") for name in ("angle", "blr")]
    agree(own.term("range") / WEIGHTS["range"], sum(logged))


@each_epoch
def test_logged_changes(epoch: int) -> None:
    own = recorded(epoch)
    turned = bone_angle_change(own.generated.clean_pose, own.generated.bent_pose, H36M_16)
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
    weight = own.preset.bent_weight if which == "ba" else own.preset.moved_weight
    expected = own.scalar(f"posenet_feedback_{which}_hard_mean_loss")
    agree(own.term("feedback") / weight, expected, EXACT if which == "ba" else TORCHGEOMETRY)


@each_epoch
def test_feedback_waits_for_the_warmup(epoch: int) -> None:
    own = recorded(epoch)
    terms = {
        "ba": own.preset.bent_weight * own.scalar("posenet_feedback_ba_hard_mean_loss"),
        "rt": own.preset.moved_weight * own.scalar("posenet_feedback_rt_hard_mean_loss"),
    }
    waits = epoch <= LOSSES["feedback/warmup"]
    expected = torch.zeros((), dtype=torch.float64) if waits else sum(terms.values())
    agree(own.term("feedback"), expected, TORCHGEOMETRY)


@each_epoch
def test_total_loss_of_the_policy(epoch: int) -> None:
    own = recorded(epoch)
    agree(own.loss[0], own.scalar("gen_loss"), TORCHGEOMETRY)


# -- the policy's step -----------------------------------------------------------------------------


def last_layers(policy: RegressorPolicy) -> Iterator[tuple[str, nn.Parameter]]:
    """Our last layers by the reference's names."""
    for head, (network, *_, last) in zip(policy.network.heads, REFERENCE_BRANCHES, strict=True):
        for kind in ("weight", "bias"):
            yield f"{network}/{last}/{kind}", getattr(head, kind)


@each_epoch
def test_gradient_norm_before_clipping(epoch: int) -> None:
    own = recorded(epoch)
    gradients = torch.autograd.grad(own.loss[0], list(own.policy.parameters()), retain_graph=True)
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    agree(norm, own.expected["grad_norm_before_clip_G_d3d_d2d"][0], TORCHGEOMETRY)


def stepped(epoch: int) -> tuple[Iteration, dict[str, Tensor]]:
    """After the trainer's own update, and the gradients that its first step took."""
    own = iteration(epoch)
    adam = own.phase("policy").optimizer
    with in_float64.used():
        own.trainer.update(own.context)
    assert (adam.steps == 1).all()
    moments = adam.first_moment.split([p.numel() for p in adam.network_parameters])
    taken = {
        id(parameter): (moment / (1 - FIRST_BETA)).view_as(parameter)
        for parameter, moment in zip(adam.network_parameters, moments, strict=True)
    }
    return own, {name: taken[id(p)] for name, p in last_layers(own.policy)}


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
    """Of the separate target poses and of what was generated."""
    critic, (_, fake) = own.critic(name), own.poses(name)
    return critic(STEP[f"target_{name}"]), critic(fake)


each_critic = pytest.mark.parametrize(("name", "tolerance"), [("3d", EXACT), ("2d", TORCHGEOMETRY)])


@each_epoch
@each_critic
def test_critic_loss(epoch: int, name: str, tolerance: float) -> None:
    own = recorded(epoch)
    expected = own.scalar(f"PoseAug_d{name}_dis_loss")
    agree(own.critic_loss(name)[0], expected, tolerance)
    real, fake = critic_scores(own, name)
    agree(lsgan_critic_loss(real, fake, torch.ones(len(real)).to(real)), expected, tolerance)


@each_epoch
@each_critic
def test_critic_accuracy(epoch: int, name: str, tolerance: float) -> None:
    own = recorded(epoch)
    for scores, kind in zip(critic_scores(own, name), ("real", "fake"), strict=True):
        expected = own.scalar(f"PoseAug_d{name}_{kind}_acc").item()
        accuracy = critic_accuracy(scores, kind == "real").item()
        assert accuracy == pytest.approx(expected, rel=max(tolerance, 1e-6))
    both = [own.scalar(f"PoseAug_d{name}_{kind}_acc") for kind in ("real", "fake")]
    reading = own.critic_loss(name)[2][f"critic_{name}"].item()
    assert reading == pytest.approx(sum(both).item() / 2, rel=max(tolerance, 1e-6))


@each_epoch
@each_critic
def test_critic_gradient_norm(epoch: int, name: str, tolerance: float) -> None:
    own = recorded(epoch)
    loss = own.critic_loss(name)[0]
    gradients = torch.autograd.grad(loss, list(own.critic(name).parameters()))
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    position = ["G", "3d", "2d"].index(name)
    agree(norm, own.expected["grad_norm_before_clip_G_d3d_d2d"][position], tolerance)


# -- what gets out ---------------------------------------------------------------------------------


@each_epoch
def test_number_of_kept_poses(epoch: int) -> None:
    own = recorded(epoch)
    assert own.batch.accepted.sum() == own.expected["kept_count"]


@each_epoch
def test_kept_poses(epoch: int) -> None:
    own = recorded(epoch)
    kept = own.batch.accepted
    joints, keypoints = own.batch.joints[kept, 0], own.batch.keypoints[kept, 0]
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

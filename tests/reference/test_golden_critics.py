"""Critics, their losses, steps and pools against the numbers of the reference code.

See tests/golden/README.md. Nothing here depends on the numbers themselves: another set with the
same keys serves as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from helpers import (
    REFERENCE_2D_LAYERS,
    agree,
    below,
    gathered_entries,
    generated,
    golden,
    gradient,
    leaf,
    lifted,
    load_reference_critic_2d,
    load_reference_critic_3d,
    reference_columns,
    reference_critic_3d_names,
)
from torch import Tensor, nn

from poseaug_plugin.adversary.critics import (
    Critic,
    KeypointCritic,
    PartKCSCritic,
    adversarial_term,
    critic_accuracy,
    critic_loss,
    lsgan_critic_loss,
    lsgan_policy_loss,
)
from poseaug_plugin.adversary.pool import FakePosePool
from poseaug_plugin.augment.transforms import GeneratedPoses
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.host.adapter import PoseAdapter
from poseaug_plugin.options import Options, Surroundings
from poseaug_plugin.reference.recipes import Released, both_sided_term
from poseaug_plugin.runtime.isolation import TorchDefaults
from poseaug_plugin.runtime.optimizer import GuardedAdam

DISCRIMINATORS, LOSSES = map(golden, ("discriminators", "losses"))


class Recorded(NamedTuple):
    """A critic with the reference's weights, what it was shown, and where its scores stand."""

    network: Critic
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
            if isinstance(self.network, KeypointCritic):
                names = [f"{REFERENCE_2D_LAYERS[layer]}/{kind}"]
                if names[0] in own:
                    yield parameter, own[names[0]]
            else:
                names = reference_critic_3d_names(layer, kind)
                if names[0] in own:
                    expected = torch.stack([own[n] for n in names])
                    if name == "layer_1.weight":
                        kept = gathered_entries(expected, self.network)
                        agree(kept.norm(), expected.norm())  # the others are zeros
                        expected = kept
                    yield parameter, expected

    def generated(self, real: Tensor, fake: Tensor) -> GeneratedPoses:
        """A batch that shows the critic these poses."""
        if isinstance(self.network, PartKCSCritic):
            return generated(real, fake)
        return generated(lifted(real), keypoints=fake)


def reference_critic(name: str) -> Recorded:
    state, io = below(DISCRIMINATORS, f"{name}/"), below(DISCRIMINATORS, f"{name}_io/")
    if name == "d3d":
        return Recorded(load_reference_critic_3d(state), io, reference_columns())
    return Recorded(load_reference_critic_2d(state), io, [0])


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
def test_critics_see_their_own_view(name: str) -> None:
    critic = reference_critic(name)
    made = critic.generated(critic.io["real"], critic.io["fake"])
    assert torch.equal(critic.network.real(made), critic.io["real"])
    assert torch.equal(critic.network.fake(made), critic.io["fake"])


@each_critic
def test_critics_own_loss(name: str) -> None:
    critic = reference_critic(name)
    (real, real_scores), (fake, fake_scores) = critic.scores_of("real"), critic.scores_of("fake")
    alike = torch.ones(len(real)).double()
    total, accuracy = critic_loss(critic.network, real, fake, alike)
    # Scores without loss leave one half of it, and the reference does not halve the halves.
    real_half = 2 * lsgan_critic_loss(real_scores, torch.zeros_like(fake_scores), alike)
    fake_half = 2 * lsgan_critic_loss(torch.ones_like(real_scores), fake_scores, alike)
    for loss in (total, lsgan_critic_loss(real_scores, fake_scores, alike)):
        agree(loss, critic.io["loss_dis_total"])
        agree(gradient(loss, real), critic.io["grad_real_dis_total"])
        agree(gradient(loss, fake), critic.io["grad_fake_dis_total"])
    agree(real_half, critic.io["loss_dis_real"])
    agree(fake_half, critic.io["loss_dis_fake"])
    agree(gradient(real_half, real), critic.io["grad_real_dis_real"])
    agree(gradient(fake_half, fake), critic.io["grad_fake_dis_fake"])
    expected = (critic.io["step/real_acc"] + critic.io["step/fake_acc"]) / 2
    assert accuracy.item() == pytest.approx(expected.item(), rel=1e-6)


@each_critic
def test_both_sided_loss_of_the_policy(name: str) -> None:
    critic = reference_critic(name)
    critic.network.weight = 1.0
    (real, real_scores), (fake, fake_scores) = critic.scores_of("real"), critic.scores_of("fake")
    made = critic.generated(real, fake)
    total, adversarial = (f(made, critic.network) for f in (both_sided_term, adversarial_term))
    real_half = real_scores.square().mean()
    fake_half = 2 * lsgan_policy_loss(fake_scores, torch.ones(len(fake)).double())
    agree(total, critic.io["loss_gen_total"])
    agree(2 * (total - adversarial), critic.io["loss_gen_real"])
    agree(2 * adversarial, critic.io["loss_gen_fake"])
    agree(gradient(total, fake), critic.io["grad_fake_gen_total"])
    agree(gradient(2 * adversarial, fake), critic.io["grad_fake_gen_fake"])
    # Not in the term: to the policy the real half is a constant.
    agree(real_half, critic.io["loss_gen_real"])
    agree(fake_half, critic.io["loss_gen_fake"])
    agree(gradient((real_half + fake_half) / 2, real), critic.io["grad_real_gen_total"])
    agree(gradient(real_half, real), critic.io["grad_real_gen_real"])
    agree(gradient(fake_half, fake), critic.io["grad_fake_gen_fake"])
    assert not gradient(total + 0 * real.sum(), real).any()


@each_critic
def test_policy_gets_half_the_gradient_of_the_released_fake_loss(name: str) -> None:
    critic = reference_critic(name)
    fake, scores = critic.scores_of("fake")
    loss = lsgan_policy_loss(scores, torch.ones(len(fake)).double())
    agree(gradient(loss, fake), critic.io["grad_fake_gen_total"])


@each_critic
@pytest.mark.parametrize("weight", [1.0, 6.0])
def test_logged_adversarial_loss(name: str, weight: float) -> None:
    critic = reference_critic(name)
    critic.network.weight = weight
    made = critic.generated(critic.io["real"], critic.io["fake"])
    agree(both_sided_term(made, critic.network) / weight, critic.io["gen_adv_loss"])


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
    real, fake = critic.scores_of("real")[1], critic.scores_of("fake")[1]
    lsgan_critic_loss(real, fake, torch.ones(len(real)).double()).backward()
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


@each_critic
def test_one_step_of_the_librarys_own_adam(name: str) -> None:
    critic = reference_critic(name)
    with TorchDefaults(torch.float64, torch.device("cpu")).used():
        adam = GuardedAdam(critic.network, 1e-4)
    weights = torch.ones(len(critic.io["real"]), dtype=torch.float64)
    loss, _ = critic_loss(critic.network, critic.io["real"], critic.io["fake"], weights)
    assert not adam.step(adam.gradients(loss), torch.tensor(True))
    compared = 0
    for parameter, after in critic.reference_parameters("step/param_after/"):
        agree(parameter.detach(), after)
        compared += 1
    assert compared >= 6


def test_released_sizes_are_the_official_ones() -> None:
    surroundings = Surroundings(nn.Identity(), PoseAdapter(), H36M_16, torch.Generator())
    training = Released().build(Options(total_updates=1), surroundings)
    counts = [
        sum(p.numel() for p in network.parameters())
        for network in (*training.critics, training.policy)
    ]
    # The first layers of the reference have weights for entries that are always zero.
    parts, width, kept = training.critics[0].layer_1.weight.shape
    counts[0] += parts * width * (H36M_16.num_bones**2 - kept)
    assert counts == DISCRIMINATORS["default_num_params"].tolist()


@each_critic
@pytest.mark.parametrize("label", [0, 1])
def test_accuracy(name: str, label: int) -> None:
    accuracy = critic_accuracy(LOSSES[f"accuracy/{name}/pred"], bool(label))
    expected = LOSSES[f"accuracy/{name}/label{label}"].item()
    assert accuracy.item() == pytest.approx(expected, rel=1e-6)


# -- pools -----------------------------------------------------------------------------------------


def test_replaying_the_small_pool() -> None:
    own = below(LOSSES, "pool_small/")
    pool = FakePosePool(int(own["capacity"]), ()).double()
    draws, slots = iter(own["u"]), iter(own["slot"])
    out = []
    for sample in own["in"]:
        # The reference draws once the pool is full, and a place only for what it swaps.
        draw = next(draws) if len(pool) == pool.capacity else torch.zeros(())
        slot = next(slots) if draw > 0.5 else torch.zeros((), dtype=torch.int64)
        # The place of the first key is drawn.
        keys = (torch.arange(pool.capacity) != slot).double()
        with mock.patch("torch.rand", side_effect=[draw[None], keys]):
            out.append(pool.exchange(sample[None]))
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

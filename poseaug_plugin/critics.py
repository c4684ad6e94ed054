"""`Critic`: a discriminator while it trains, and the poses that it compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import PoseAugConfig
from .discriminators import KeypointDiscriminator, MotionDiscriminator, PartKCSDiscriminator
from .execution import Execution
from .guarded import GuardedAdam
from .objectives import Generated, Judged, judged_by
from .pool import FakePosePool
from .skeleton import Skeleton
from .windows import num_motion_features

_FRAMES_OF_MOTION = 3  # that it takes to see a velocity and an acceleration


class Critic(NamedTuple):
    """A discriminator with what belongs to it."""

    name: str  # "3d", "2d" or "motion"
    network: nn.Module
    pool: FakePosePool
    adam: GuardedAdam
    real: Tensor | None  # given poses that stand for real ones


class Compared(NamedTuple):
    """What a critic is trained on."""

    real: Tensor  # (B, ...)
    fake: Tensor  # (B, ...) generated poses, older ones among them
    weights: Tensor  # (B,) of the real ones


def make_critics(
    skeleton: Skeleton,
    config: PoseAugConfig,
    device: torch.device,
    adam_of: Callable[[nn.Module], GuardedAdam],
    real_3d: Tensor | None,
    real_2d: Tensor | None,
) -> tuple[Critic, ...]:
    """The three of a training, with empty pools.

    Args:
        skeleton: The tree.
        config: Options.
        device: Where they live.
        adam_of: Makes a network's optimizer.
        real_3d: (N, J, 3) poses that the 3D critic takes for real; None for those of the batches.
        real_2d: (N, J, 2) likewise for the 2D critic.
    """

    def make(
        name: str, network: nn.Module, shape: tuple[int, ...], real: Tensor | None = None
    ) -> Critic:
        network.to(device)
        pool = FakePosePool(config.pool_capacity, shape, config.pool_swap_probability).to(device)
        return Critic(name, network, pool, adam_of(network), real)

    joints = skeleton.num_joints
    critic_3d = PartKCSDiscriminator(skeleton, scope=config.kcs, width=config.width)
    return (
        make("3d", critic_3d, (joints, 3), real_3d),
        make("2d", KeypointDiscriminator(skeleton), (joints, 2), real_2d),
        make("motion", MotionDiscriminator(skeleton), (num_motion_features(skeleton),)),
    )


def able_to_judge(critics: tuple[Critic, ...], generated: Generated) -> tuple[Critic, ...]:
    """Those of them who see something in windows of that length."""
    frames = generated.clean.shape[1]
    return tuple(c for c in critics if c.name != "motion" or frames >= _FRAMES_OF_MOTION)


@torch.no_grad()
def compared_by(
    critic: Critic, generated: Generated, skeleton: Skeleton, execution: Execution
) -> Compared:
    """Real poses, and generated ones of which some are swapped for older ones in the pool."""
    generator = execution.generator
    real, fake = execution.compute(_finite_judged_by, critic.name, generated, skeleton)
    weights = generated.weights
    if critic.real is not None:
        rows = torch.randint(
            *(critic.real.shape[0], (real.shape[0],)), device=generator.device, generator=generator
        )
        real, weights = critic.real[rows], torch.ones_like(weights)
    return Compared(real, critic.pool.exchange(fake, generator), weights)


def _finite_judged_by(critic: str, generated: Generated, skeleton: Skeleton) -> Judged:
    """With zeros in place of a pose that is not finite, so that no pool ever holds one."""
    real, fake = judged_by(critic, generated, skeleton)
    finite = fake.isfinite().flatten(1).all(1)
    return Judged(real, torch.where(finite.reshape(-1, *[1] * (fake.dim() - 1)), fake, 0.0))

"""Policies of every kind, and what they draw, for the tests of policies."""

from __future__ import annotations

import pytest
import torch
from helpers import human_poses
from random_bodies import generator, normal
from torch import Tensor

from poseaug_plugin.augment.policy import AugmentationPolicy, Policy, RandomPolicy, Spread
from poseaug_plugin.augment.transforms import AugmentationParameters
from poseaug_plugin.body.presets import H36M_16, SKELETONS
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.reference.regressors import RegressorPolicy

REGRESSORS = {"regressors": False, "one extractor": True}  # whether they share it

each_preset = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
each_kind = pytest.mark.parametrize("kind", ["unlearned", "learned", *REGRESSORS])
each_learned_kind = pytest.mark.parametrize("kind", ["learned", *REGRESSORS])
each_regressor_kind = pytest.mark.parametrize("kind", REGRESSORS)


def poses(batch: int = 6, frames: int = 1, skeleton: Skeleton = H36M_16) -> Tensor:
    """Bodies in front of the camera, always the same."""
    return human_poses(batch, frames, skeleton, generator(0))


def taught(policy: Policy, scale: float = 1.0) -> Policy:
    """The policy as if it had learned something: factors, or last layers, of some size."""
    drawing = isinstance(policy, AugmentationPolicy)
    learned = [policy.widening] if drawing else policy.network.heads.parameters()
    with torch.no_grad():
        for i, parameter in enumerate(learned):
            parameter.copy_((0.01 if drawing else 1) * scale * normal(*parameter.shape, seed=i))
    return policy


def build(kind: str, skeleton: Skeleton = H36M_16, **options: object) -> Policy:
    """A policy in float64: drawing only, learned, or regressors with one extractor or four."""
    if kind not in REGRESSORS:
        options.setdefault("spread", Spread(focal_length=0.5, keep_view=0))
    if kind == "unlearned":
        return RandomPolicy(skeleton, **options).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy: Policy
        if kind == "learned":
            policy = AugmentationPolicy(skeleton, **options)
        else:
            policy = RegressorPolicy(
                skeleton, shared_extractor=REGRESSORS[kind], width=8, **options
            )
    return taught(policy.double()).eval()


def drawn(policy: Policy, joints: Tensor, seed: int = 1) -> AugmentationParameters:
    """What the policy makes of poses and of noise that is always the same."""
    return policy(joints, normal(len(joints), policy.noise_size, seed=seed))


def same(one: AugmentationParameters, other: AugmentationParameters) -> bool:
    """To the last bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def weighted_sum(parameters: AugmentationParameters) -> Tensor:
    """A number that every entry has a part in."""
    return sum((p * normal(*p.shape, seed=i)).sum() for i, p in enumerate(parameters))

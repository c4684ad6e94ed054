"""Random skeletons, poses and parameters, of which property tests take many."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from poseaug_plugin.augment.transforms import AugmentationParameters
from poseaug_plugin.body.bones import joints_to_bones
from poseaug_plugin.body.skeleton import Skeleton

some_examples = settings(max_examples=25, deadline=None)


@st.composite
def skeletons(draw: st.DrawFn) -> Skeleton:
    """A random tree with a trunk and mirrored limbs, its joints in random order."""
    parents: dict[str, str | None] = {"root": None}
    trunk = ["root"]
    parts: dict[str, list[str]] = {"torso": trunk}

    def grow(part: str, attachment: str, length: int) -> None:
        parts[part] = [f"{part}_{i}" for i in range(length)]
        parents.update(zip(parts[part], [attachment, *parts[part]], strict=False))

    for i in range(draw(st.integers(1, 4))):
        parents[f"trunk_{i}"] = draw(st.sampled_from(trunk))
        trunk.append(f"trunk_{i}")
    for i in range(draw(st.integers(0, 3))):
        attachment, length = draw(st.sampled_from(trunk)), draw(st.integers(1, 4))
        for side in ("left", "right"):
            grow(f"{side}_{i}", attachment, length)
    if draw(st.booleans()):
        grow("tail", draw(st.sampled_from(trunk)), draw(st.integers(1, 2)))
    if draw(st.booleans()):
        above = draw(st.sampled_from(trunk))
        parents |= {"left_eye": above, "right_eye": above}
        trunk += ["left_eye", "right_eye"]
    order = draw(st.permutations(list(parents)))
    return Skeleton("random", {joint: parents[joint] for joint in order}, parts)


seeds = st.integers(0, 2**32)
windows = st.tuples(st.integers(1, 3), st.integers(1, 5))  # batch, frames
leading_shapes = st.sampled_from([(), (1,), (4,), (2, 3), (2, 1, 3)])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotations(*shape: int, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(normal(*shape, 3, 3, seed=seed)).Q
    return q * torch.linalg.det(q)[..., None, None]


def any_parameters(joints: Tensor, skeleton: Skeleton, seed: int) -> AugmentationParameters:
    """Neither left/right tied nor small."""
    batch = joints.shape[0]
    return AugmentationParameters(
        0.5 * normal(batch, 1, skeleton.num_bones, 3, seed=seed),
        0.5 * normal(batch, 1, skeleton.num_bones, seed=seed).tanh(),
        rotations(batch, 1, seed=seed),
        normal(batch, 1, 3, seed=seed + 1),
        joints.new_ones(batch, 1),
    )


def lengths_of(joints: Tensor, skeleton: Skeleton) -> Tensor:
    return joints_to_bones(joints, skeleton).norm(dim=-1)


def mirror(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """The pose in the mirror: x negated, left joints called right."""
    return joints[..., list(skeleton.flip_permutation), :] * joints.new_tensor([-1, 1, 1])


def mirrored_bones(skeleton: Skeleton) -> list[int]:
    flip, children = skeleton.flip_permutation, skeleton.bone_children
    return [children.index(flip[child]) for child in children]

"""Things several test files share: golden numbers, reference weights, poses and cameras."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from poseaug_plugin.adversary.critics import KeypointCritic, PartKCSCritic
from poseaug_plugin.augment.transforms import (
    AugmentationInputs,
    AugmentedPoses,
    GeneratedPoses,
    bend_directions,
    identity_parameters,
)
from poseaug_plugin.body.bones import bone_lengths, bones_to_joints, joints_to_bones, per_bone
from poseaug_plugin.body.camera import project_points
from poseaug_plugin.body.poses import CanonicalBatch
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.reference.regressors import RegressorPolicy

GOLDEN = Path(os.environ.get("POSEAUG_GOLDEN", Path(__file__).parent / "golden"))


# A skeleton of one's own.
PARENTS = {
    "left_hand": "left_arm",  # listed before its parent on purpose
    "hip": None,
    "chest": "hip",
    "left_arm": "chest",
    "right_arm": "chest",
    "right_hand": "right_arm",
    "head": "chest",
}
PARTS = {
    "torso": ("hip", "chest", "head"),
    "left": ("left_arm", "left_hand"),
    "right": ("right_arm", "right_hand"),
}


def golden(name: str) -> dict[str, Tensor]:
    """The arrays of one golden file (see tests/golden/README.md) as float64 / int64 tensors."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    return {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under ``prefix``, by the rest of its key."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def agree(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Same shape, finite, and nowhere further apart than ``tolerance`` of the largest entry."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    if expected.numel():
        # 1e-12 is for expected zeros.
        limit = tolerance * float(expected.detach().abs().max()) + 1e-12
        assert float((actual - expected).detach().abs().max()) <= limit


def leaf(tensor: Tensor) -> Tensor:
    """A copy of which gradients are asked."""
    return tensor.clone().requires_grad_()


def gradient(of: Tensor, wrt: Tensor, weights: Tensor | None = None) -> Tensor:
    """Of ``sum(of * weights)``, or of a scalar."""
    return torch.autograd.grad(of, wrt, weights, retain_graph=True)[0]


def bent_joints(joints: Tensor, offset: Tensor, skeleton: Skeleton) -> Tensor:
    """Joints (B, T, J, 3) with their bones turned, the root where it was."""
    bones = joints_to_bones(joints, skeleton)
    lengths = bone_lengths(bones).unsqueeze(-1)
    bent = bend_directions(bones / lengths, offset) * lengths
    return bones_to_joints(bent, skeleton, joints[..., skeleton.root, :])


def scaled_joints(joints: Tensor, ratio: Tensor, skeleton: Skeleton) -> Tensor:
    """Joints (..., J, 3) with their bones stretched, the root where it was."""
    bones = joints_to_bones(joints, skeleton) * (1 + ratio).unsqueeze(-1)
    return bones_to_joints(bones, skeleton, joints[..., skeleton.root, :])


# -- poses and cameras -----------------------------------------------------------------------------


def human_poses(batch: int, frames: int, skeleton: Skeleton, generator: torch.Generator) -> Tensor:
    """Moving bodies of human size, 3 to 6 m in front of the camera: (B, T, J, 3) float64.

    Left and right bones are equally long, and lengths do not change over time.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    directions = normal(batch, 1, skeleton.num_bones, 3)
    directions = directions + 0.1 * normal(batch, frames, skeleton.num_bones, 3)
    lengths = 0.3 + 0.05 * normal(batch, 1, skeleton.num_bone_length_groups).clamp(-2, 2)
    bones = nn.functional.normalize(directions, dim=-1) * per_bone(lengths, skeleton).unsqueeze(-1)
    start = torch.tensor([0.0, 0.0, 4.5], dtype=torch.float64) + normal(batch, 1, 3).clamp(
        -1.5, 1.5
    ) * torch.tensor([0.3, 0.2, 1.0], dtype=torch.float64)
    path = (0.02 * normal(batch, frames, 3)).cumsum(1)
    return bones_to_joints(bones, skeleton, start + path)


def h36m_intrinsics(batch: int) -> Tensor:
    """Human3.6M's four cameras in turn, (B, 9) float64."""
    cameras = golden("camera")["intrinsics"]
    return cameras[torch.arange(batch) % len(cameras)]


def generated(
    clean: Tensor,
    bent: Tensor | None = None,
    keypoints: Tensor | None = None,
    ratio: Tensor | None = None,
    weights: Tensor | None = None,
) -> GeneratedPoses:
    """What critics and terms see of single poses of `H36M_16`; each None leaves as it was.

    Args:
        clean: (B, J, 3), seen by a pinhole camera of focal length 1.
        bent: (B, J, 3), which are also the moved ones.
        keypoints: (B, J, 2) of the augmented poses.
        ratio: (B, bones) of bone lengths.
        weights: (B,), each 0 or 1.
    """
    bent = clean if bent is None else bent
    intrinsics = clean.new_tensor([1.0, 1.0, *[0.0] * 7]).expand(len(clean), 9)
    keypoints = project_points(bent, intrinsics) if keypoints is None else keypoints
    poses = CanonicalBatch(
        clean[:, None],
        project_points(clean, intrinsics)[:, None],
        intrinsics,
        torch.ones(len(clean), dtype=torch.bool) if weights is None else weights > 0,
    )
    parameters = identity_parameters(poses.joints, H36M_16)
    if ratio is not None:
        parameters = parameters._replace(bone_length_ratio=ratio[:, None])
    return GeneratedPoses(
        AugmentationInputs(poses, clean.new_zeros(len(clean), 0), None, True),
        parameters,
        AugmentedPoses(bent[:, None], bent[:, None], bent[:, None]),
        keypoints[:, None],
        intrinsics,
        H36M_16,
    )


def lifted(keypoints: Tensor) -> Tensor:
    """Poses (B, J, 3) that the camera of `generated` sees at (B, J, 2) keypoints."""
    return torch.cat([keypoints, torch.ones_like(keypoints[..., :1])], -1)


# -- the reference code's weights ------------------------------------------------------------------

# First layer, its norm, the stages and the last layer of the reference's four networks.
REFERENCE_BRANCHES = (
    ("BAprocess", "w1", "batch_norm1", "linear_stages", "w2"),
    ("BLprocess", "w1_BL", "batch_norm_BL", "linear_stages_BL", "w2_BL"),
    ("RTprocess", "w1_R", "batch_norm_R", "linear_stages_R", "w2_R"),
    ("RTprocess", "w1_T", "batch_norm_T", "linear_stages_T", "w2_T"),
)
LENGTH_BRANCH = 1


def reference_norms(position: int) -> list[str]:
    """Where the reference keeps the branches' batch norms that our ``norms[position]`` joins."""
    stage, layer = divmod(position - 1, 2)
    return [
        f"{network}/{norm}"
        if position == 0
        else f"{network}/{stages}/{stage}/batch_norm{layer + 1}"
        for network, _, norm, stages, _ in REFERENCE_BRANCHES
    ]


def load_reference_policy(state: Mapping[str, Tensor]) -> RegressorPolicy:
    """The reference's augmentor (``G/*``, keys without the prefix) as a policy in float64.

    Noise is that of bone angle, bone length, rotation and translation, next to each other.
    """
    width = len(state["BAprocess/w1/bias"])
    policy = RegressorPolicy(H36M_16, fixed_trunk=True, width=width).double()

    def each(names: Sequence[str], kind: str) -> list[Tensor]:
        return [state[f"{name}/{kind}"] for name in names]

    firsts = [f"{network}/{first}" for network, first, *_ in REFERENCE_BRANCHES]
    weights = each(firsts, "weight")
    # The bone length branch sees the pose, then the bone lengths, then its noise.
    pose, bones = 3 * H36M_16.num_joints, H36M_16.num_bones
    own_pose, lengths, own_noise = weights[LENGTH_BRANCH].tensor_split([pose, pose + bones], 1)
    weights[LENGTH_BRANCH] = torch.cat([own_pose, own_noise], 1)
    ours = {
        "inputs.weight": torch.stack(weights),
        "inputs.bias": torch.stack(each(firsts, "bias")),
        "lengths.weight": lengths,
    }
    for i in range(len(policy.network.hidden)):
        stage, layer = divmod(i, 2)
        names = [f"{branch[0]}/{branch[3]}/{stage}/w{layer + 1}" for branch in REFERENCE_BRANCHES]
        for kind in ("weight", "bias"):
            ours[f"hidden.{i}.{kind}"] = torch.stack(each(names, kind))
    for i in range(len(policy.network.norms)):
        names = reference_norms(i)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            ours[f"norms.{i}.{kind}"] = torch.cat(each(names, kind))
        ours[f"norms.{i}.num_batches_tracked"] = state[f"{names[0]}/num_batches_tracked"]
    for i, (network, *_, last) in enumerate(REFERENCE_BRANCHES):
        for kind in ("weight", "bias"):
            ours[f"heads.{i}.{kind}"] = state[f"{network}/{last}/{kind}"]
    policy.network.load_state_dict(ours)
    return policy


# The reference's critics of parts, in the order of its output. Its two legs have their names the
# wrong way round: what it calls the left leg is made of the right leg's joints.
REFERENCE_PARTS = {
    "lh": "left_arm",
    "rh": "right_arm",
    "ll": "right_leg",
    "rl": "left_leg",
    "hb": "torso",
}
REFERENCE_3D_LAYERS = {
    "layer_1": "kcs_layer_1",
    "layer_2": "kcs_layer_2",
    "layer_3": "kcs_layer_3",
    "layer_last": "layer_last",
    "score": "layer_pred",
}
REFERENCE_2D_LAYERS = {
    "layer_1": "pose_layer_1",
    "layer_2": "pose_layer_2",
    "layer_3": "pose_layer_3",
    "layer_4": "pose_layer_4",
    "layer_last": "layer_last",
    "score": "layer_pred",
}


def reference_columns() -> list[int]:
    """For each of our parts the column of the reference's 3D critic that judges it."""
    order = list(REFERENCE_PARTS.values())
    return [order.index(part) for part, _ in H36M_16.part_bones]


def reference_critic_3d_names(layer: str, kind: str) -> list[str]:
    """Where the reference keeps our ``layer.kind``, part by part in our order."""
    return [
        f"kcs_path_{column + 1}/{REFERENCE_3D_LAYERS[layer]}/{kind}"
        for column in reference_columns()
    ]


def gathered_entries(weight: Tensor, critic: PartKCSCritic) -> Tensor:
    """Of first-layer weights (parts, width, bones * bones) the columns that the critic keeps."""
    columns = critic.entries.unsqueeze(1).expand(-1, weight.shape[1], -1)
    return weight.gather(2, columns)


def load_reference_critic_3d(state: Mapping[str, Tensor]) -> PartKCSCritic:
    """The reference's 3D critic (``d3d/*``, keys without the prefix) in float64."""
    last_width, width = state["kcs_path_1/layer_last/weight"].shape
    critic = PartKCSCritic(H36M_16, width=width, last_width=last_width).double()
    ours = {
        f"{layer}.{kind}": torch.stack([state[n] for n in reference_critic_3d_names(layer, kind)])
        for layer in REFERENCE_3D_LAYERS
        for kind in ("weight", "bias")
    }
    ours["layer_1.weight"] = gathered_entries(ours["layer_1.weight"], critic)
    critic.load_state_dict(ours)
    return critic


def load_reference_critic_2d(state: Mapping[str, Tensor]) -> KeypointCritic:
    """The reference's 2D critic (``d2d/*``, keys without the prefix) in float64."""
    critic = KeypointCritic(H36M_16, width=len(state["pose_layer_1/bias"])).double()
    critic.load_state_dict(
        {
            f"{layer}.{kind}": state[f"{name}/{kind}"]
            for layer, name in REFERENCE_2D_LAYERS.items()
            for kind in ("weight", "bias")
        }
    )
    return critic

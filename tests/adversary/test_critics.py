"""Critics: what each of them sees of a pose, and what a batch is to it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import agree, bent_joints, gathered_entries, scaled_joints
from loops import SmallDefault, absolute_batch, make_hook, make_lifter
from policies import each_preset, poses
from random_bodies import normal
from torch import Tensor, nn

from poseaug_plugin.adversary.critics import Critic, GroupedLinear, KeypointCritic, PartKCSCritic
from poseaug_plugin.augment.transforms import GeneratedPoses
from poseaug_plugin.body.bones import bone_directions, joints_to_bones
from poseaug_plugin.body.camera import project_points
from poseaug_plugin.body.poses import CanonicalPoses
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.trainer import Trainer

# -- grouped layers --------------------------------------------------------------------------------


def test_grouped_layers_are_separate_layers() -> None:
    grouped, x = GroupedLinear(3, 4, 5).double(), normal(3, 4, 7)
    expected = [nn.functional.linear(x[g].T, grouped.weight[g], grouped.bias[g]) for g in range(3)]
    agree(grouped(x).mT.detach(), torch.stack(expected).detach())


def test_grouped_layers_start_each_on_its_own() -> None:
    weight = GroupedLinear(2, 4, 5).weight
    assert not torch.equal(weight[0], weight[1])
    assert weight.abs().max() <= 1 / math.sqrt(4)


# -- what critics see ------------------------------------------------------------------------------


SCOPES = ("parts", "whole")


each_scope = pytest.mark.parametrize("scope", SCOPES)


def kcs_critic(skeleton: Skeleton = H36M_16, scope: str = "parts") -> PartKCSCritic:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PartKCSCritic(skeleton, scope=scope, width=16).double()


def turned(joints: Tensor) -> Tensor:
    q = torch.linalg.qr(normal(len(joints), 3, 3)).Q
    return joints @ (q * torch.linalg.det(q)[:, None, None]).mT


UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "viewpoint": turned,
    "place": lambda x: x + normal(len(x), 1, 3),
    "size": lambda x: 2.5 * x,
    "bone lengths": lambda x: scaled_joints(x, 0.4 * normal(len(x), 15).tanh(), H36M_16),
}


@each_scope
@pytest.mark.parametrize("change", UNSEEN)
def test_the_3d_critic_sees_angles_only(change: str, scope: str) -> None:
    critic, joints = kcs_critic(scope=scope), poses()[:, 0]
    agree(critic(UNSEEN[change](joints)), critic(joints).detach())


@each_scope
@each_preset
def test_one_score_per_part_or_one_for_all(skeleton: Skeleton, scope: str) -> None:
    scores = kcs_critic(skeleton, scope)(poses(skeleton=skeleton)[:, 0])
    assert scores.shape == (6, len(skeleton.part_bones) if scope == "parts" else 1)


@each_preset
def test_each_part_critic_sees_its_own_bones_only(skeleton: Skeleton) -> None:
    critic, joints = kcs_critic(skeleton), poses(skeleton=skeleton)
    before = critic(joints[:, 0])
    for bone in range(skeleton.num_bones):
        offset = torch.zeros(6, 1, skeleton.num_bones, 3, dtype=torch.float64)
        offset[:, :, bone] = normal(6, 1, 3)
        after = critic(bent_joints(joints, offset, skeleton)[:, 0])
        changed = ((after - before).abs() > 1e-9).all(0).tolist()
        assert changed == [bone in bones for _, bones in skeleton.part_bones]
        untouched = [bone not in bones for _, bones in skeleton.part_bones]
        agree(after[:, untouched], before[:, untouched].detach())


@each_preset
def test_the_whole_body_critic_sees_every_bone(skeleton: Skeleton) -> None:
    critic, joints = kcs_critic(skeleton, "whole"), poses(skeleton=skeleton)
    offset = torch.zeros(6, 1, skeleton.num_bones, 3, dtype=torch.float64, requires_grad=True)
    bent = bent_joints(joints, offset, skeleton)
    (slopes,) = torch.autograd.grad(critic(bent[:, 0]).sum(), offset)
    assert (slopes.norm(dim=-1) > 1e-12).all()


@each_scope
def test_the_3d_critic_judges_samples_one_by_one(scope: str) -> None:
    critic, joints = kcs_critic(scope=scope), poses()[:, 0]
    agree(torch.cat([critic(pose[None]) for pose in joints]), critic(joints).detach())


@each_scope
def test_gradients_reach_every_parameter_of_the_3d_critic(scope: str) -> None:
    critic = kcs_critic(scope=scope)
    critic(poses()[:, 0]).square().sum().backward()
    for parameter in critic.parameters():
        assert parameter.grad is not None
        assert (parameter.grad.flatten(1) != 0).any(1).all()


@each_preset
def test_the_2d_critic_sees_every_coordinate(skeleton: Skeleton) -> None:
    critic = KeypointCritic(skeleton, width=16).double()
    keypoints = normal(6, skeleton.num_joints, 2).requires_grad_()
    scores = critic(keypoints)
    assert scores.shape == (6, 1)
    (slopes,) = torch.autograd.grad(scores.sum(), keypoints)
    assert (slopes != 0).all()


def test_gradients_reach_every_parameter_of_the_2d_critic() -> None:
    critic = KeypointCritic(H36M_16, width=16).double()
    critic(normal(6, 16, 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in critic.parameters())


@each_preset
@each_scope
def test_the_3d_critic_is_what_a_loop_over_parts_makes_of_gram_matrices(
    skeleton: Skeleton, scope: str
) -> None:
    """In full: of the entries that a part does not read the weights are gone."""
    critic, joints = kcs_critic(skeleton, scope), poses(skeleton=skeleton)[:, 0]
    bones, layers = skeleton.num_bones, critic.named_children
    everything = {"body": range(bones)}
    scores = critic(joints)
    for part, members in enumerate(
        (dict(skeleton.part_bones) if scope == "parts" else everything).values()
    ):
        weights = {name: (layer.weight[part], layer.bias[part]) for name, layer in layers()}
        full = torch.zeros(len(weights["layer_1"][1]), bones * bones, dtype=torch.float64)
        for column, entry in enumerate(critic.entries[part].tolist()):
            full[:, entry] = weights["layer_1"][0][:, column]
        weights["layer_1"] = full, weights["layer_1"][1]
        for pose, score in zip(joints, scores[:, part], strict=True):
            directions = bone_directions(joints_to_bones(pose, skeleton))
            gram = torch.zeros(bones, bones, dtype=torch.float64)
            for one in members:
                for other in members:
                    gram[one, other] = directions[one] @ directions[other]

            def layer(name: str, x: Tensor, weights: dict = weights) -> Tensor:
                weight, bias = weights[name]
                return weight @ x + bias

            activate = nn.functional.leaky_relu
            features = activate(layer("layer_1", gram.flatten()))
            deeper = layer("layer_3", activate(layer("layer_2", features))) + features
            expected = layer("score", activate(layer("layer_last", deeper)))
            agree(score, expected[0].detach())


def test_the_3d_critic_keeps_the_entries_that_its_parts_read() -> None:
    critic = PartKCSCritic(H36M_16)
    most = max(len(bones) for _, bones in H36M_16.part_bones)
    assert critic.layer_1.weight.shape == (5, 64, most**2)
    for part, (_, bones) in enumerate(H36M_16.part_bones):
        expected = {15 * one + other for one in bones for other in bones}
        seen = critic.entries[part][critic.entry_masks[part] > 0].tolist()
        assert len(seen) == len(expected)
        assert set(seen) == expected


def test_kept_inputs_have_the_weights_that_they_had() -> None:
    critic = kcs_critic()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = GroupedLinear(len(H36M_16.part_bones), H36M_16.num_bones**2, 16).double()
    assert critic.layer_1.weight.shape[2] < whole.weight.shape[2]
    assert torch.equal(critic.layer_1.weight, gathered_entries(whole.weight, critic))


# -- a batch to them -------------------------------------------------------------------------------


def generated_by(frames: int = 1) -> tuple[Trainer, GeneratedPoses]:
    """A trainer, and what it made of a batch of 16 windows."""
    hook = make_hook(make_lifter(), preset=SmallDefault(pool_capacity=16), share=1.0)
    trainer = hook._trainer
    assert trainer is not None
    camera, joints, keypoints = absolute_batch(frames=frames)
    batch = trainer.augment(CanonicalPoses(joints, keypoints, camera))
    with torch.no_grad():
        return trainer, trainer.augmenter.generate(batch.inputs)


@pytest.mark.parametrize("frames", [1, 9])
def test_critics_compare_single_poses_before_and_after(frames: int) -> None:
    trainer, made = generated_by(frames)
    critic_3d, critic_2d = (phase.network for phase in trainer.phases[1:])
    judged = torch.zeros(16, dtype=torch.long)
    if frames > 1:
        judged = made.inputs.judged_frame
        assert len(set(judged.tolist())) > 3
    each = torch.arange(16), judged
    assert torch.equal(critic_3d.real(made), made.inputs.poses.joints[each])
    assert torch.equal(critic_3d.fake(made), made.poses.bent[each])
    assert torch.equal(critic_2d.fake(made), made.keypoints[each])
    clean = made.inputs.poses.joints[each]
    seen = project_points(clean, made.inputs.poses.intrinsics)
    assert torch.equal(critic_2d.real(made), seen)
    for critic in (critic_3d, critic_2d):
        assert critic.real(made).shape == critic.fake(made).shape == (16, *critic.shape)


@pytest.mark.parametrize("name", ["critic_3d", "critic_2d"])
def test_no_pool_holds_a_pose_that_is_not_finite(name: str) -> None:
    trainer, made = generated_by()
    for fake in (made.poses.bent, made.keypoints):
        fake[3, 0, 5, 1], fake[7] = torch.nan, torch.inf
    phase = next(phase for phase in trainer.phases if phase.name == name)
    loss, _, _ = phase.loss(made)
    items = trainer.pools[name].items
    assert [i for i, pose in enumerate(items) if not pose.any()] == [3, 7]
    assert items.isfinite().all()
    assert loss.isfinite()


def test_a_critic_of_ones_own_says_what_it_lacks() -> None:
    class Own(Critic):
        pass

    _, made = generated_by()
    for view in ("real", "fake"):
        with pytest.raises(TypeError, match=rf"Own must define {view}\(generated\)"):
            getattr(Own(), view)(made)

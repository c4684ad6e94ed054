"""The example estimators: the published sizes, graphs that follow the skeleton, time that adds up.

The parameter counts are those of the papers' released code, instantiated once by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from estimators import STGCN, SemGCN, SimpleBaseline, StridedTemporalModel, TemporalModel
from estimators.semgcn import NonLocal, SemGraphConv, adjacency, joint_groups
from estimators.stgcn import GraphConv, joint_kernels, part_kernels
from torch import Tensor, nn

from poseaug_plugin import Skeleton
from poseaug_plugin.body.presets import COCO_17, H36M_16, H36M_17, SKELETONS, SMPL_24

each_preset = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
both_forms = pytest.mark.parametrize("form", [TemporalModel, StridedTemporalModel])
causal_or_not = pytest.mark.parametrize("causal", [False, True], ids=["middle", "causal"])


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def used_a_while(model: nn.Module) -> nn.Module:
    """In eval mode, no weight at a special value, and running statistics of their own.

    SemGCN's non-local blocks score every pair above zero, so that their ReLU does not hide a pair.
    """
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
        for block in model.modules():
            if isinstance(block, NonLocal):
                block.score_query.weight.abs_()
                block.query.bias.add_(10)
    return model.eval()


def what_counts(model: nn.Module, keypoints: Tensor, output: Callable[[Tensor], Tensor]) -> Tensor:
    """How strongly every keypoint moves one part of the output: keypoints' shape without (x, y)."""
    keypoints = keypoints.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(output(model(keypoints)).square().sum(), keypoints)
    return gradient.abs().sum(-1)


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (SimpleBaseline, 4_291_632),  # weigq/3d_pose_baseline_pytorch; published: 4.29 M
        (SemGCN, 267_343),  # garyzhao/SemGCN; published: 0.27 M
        (lambda: SemGCN(non_local=True), 434_703),  # the same; published: 0.43 M
        (STGCN, 3_627_847),  # vanoracai/Exploiting-Spatial-temporal-..., st_gcn_single_frame
        (lambda: STGCN(frames=3), 5_040_455),  # the same, st_gcn_multi_frame
        (lambda: STGCN(frames=7), 5_040_455),
        # facebookresearch/VideoPose3D; published: 8.56 M, 12.75 M and 16.95 M
        (lambda: TemporalModel(filter_widths=(3,) * 3), 8_555_571),
        (lambda: TemporalModel(filter_widths=(3,) * 4), 12_753_971),
        (TemporalModel, 16_952_371),
        (StridedTemporalModel, 16_952_371),
    ],
    ids=[
        *("simple", "semgcn", "semgcn non-local", "stgcn 1", "stgcn 3", "stgcn 7"),
        *("tcn 27", "tcn 81", "tcn 243", "tcn strided"),
    ],
)
def test_as_many_parameters_as_the_published_model(
    make: Callable[[], nn.Module], count: int
) -> None:
    assert sum(p.numel() for p in make().parameters()) == count


def small_models() -> dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """Narrow models by name, the shape that goes in and the one that comes out."""
    strided = StridedTemporalModel(17, 15, filter_widths=(3, 3), channels=32)
    narrow = {"widths": (16, 16, 32), "part_width": 32}
    return {
        "simple": (SimpleBaseline(width=64), (8, 32), (8, 48)),
        "simple 17 to 14": (SimpleBaseline(17, 14, width=64), (8, 34), (8, 42)),
        "semgcn": (SemGCN(width=32), (8, 16, 2), (8, 16, 3)),
        "semgcn non-local": (SemGCN(width=32, non_local=True), (8, 16, 2), (8, 16, 3)),
        "stgcn 1": (STGCN(**narrow), (8, 1, 17, 2), (8, 1, 17, 3)),
        "stgcn 3": (STGCN(frames=3, **narrow), (8, 3, 17, 2), (8, 1, 17, 3)),
        "stgcn 7": (STGCN(frames=7, **narrow), (8, 7, 17, 2), (8, 1, 17, 3)),
        "tcn": (TemporalModel(filter_widths=(3, 3), channels=32), (8, 12, 17, 2), (8, 4, 17, 3)),
        "tcn strided": (strided, (8, 9, 17, 2), (8, 1, 15, 3)),
    }


each_small_model = pytest.mark.parametrize("name", list(small_models()))


@each_small_model
def test_output_shape(name: str) -> None:
    model, shape_in, shape_out = small_models()[name]
    assert model(torch.randn(shape_in)).shape == shape_out


@each_small_model
def test_overfits_one_batch(name: str) -> None:
    model, shape_in, shape_out = small_models()[name]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    keypoints, joints = torch.rand(shape_in), torch.randn(shape_out)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        loss = (model(keypoints) - joints).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@each_small_model
def test_every_parameter_learns(name: str) -> None:
    model, shape_in, _ = small_models()[name]
    used_a_while(model)(torch.randn(shape_in)).square().sum().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


@each_small_model
def test_dropout_drops_in_training_alone(name: str) -> None:
    model, shape_in, _ = small_models()[name]
    keypoints = torch.randn(shape_in)
    drops = any(m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout))
    assert drops == (not name.startswith("semgcn"))  # the published SemGCN drops nothing
    assert model(keypoints).equal(model(keypoints)) != drops
    model.eval()
    assert model(keypoints).equal(model(keypoints))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("simple", (8, 34), "(B, 32)"),
        ("simple", (8, 16, 2), "(B, 32)"),
        ("semgcn", (8, 17, 2), "(B, 16, 2)"),
        ("semgcn", (8, 16, 3), "(B, 16, 2)"),
        ("semgcn", (16, 2), "(B, 16, 2)"),
        ("stgcn 3", (8, 1, 17, 2), "(B, 3, 17, 2)"),
        ("stgcn 3", (8, 3, 16, 2), "(B, 3, 17, 2)"),
        ("tcn", (8, 12, 16, 2), "(B, T, 17, 2)"),
        ("tcn", (8, 12, 34), "(B, T, 17, 2)"),
        ("tcn strided", (8, 18, 17, 2), "(B, 9, 17, 2)"),
    ],
)
def test_wrong_shape_is_refused(name: str, shape: tuple[int, ...], expected: str) -> None:
    model = small_models()[name][0]
    message = f"expected shape {expected}, received {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(torch.randn(shape))


def test_too_short_a_sequence_is_refused() -> None:
    model = TemporalModel(filter_widths=(3, 3), channels=8)
    with pytest.raises(ValueError, match="at least 9 frames, received 8"):
        model(torch.randn(2, 8, 17, 2))


@pytest.mark.parametrize("frames", [0, 2])
def test_stgcn_needs_a_middle_frame(frames: int) -> None:
    with pytest.raises(ValueError, match=rf"frames: expected an odd number.*received {frames}"):
        STGCN(frames=frames)


@pytest.mark.parametrize("widths", [(3, 2), (), (-1,)])
def test_filter_widths_are_odd(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"received {widths}")):
        TemporalModel(filter_widths=widths)


# -- SemGCN ----------------------------------------------------------------------------------------


def hops(skeleton: Skeleton) -> Tensor:
    """Bones between any two joints, by paths to the root."""
    paths = [set(skeleton.bones_to_root(joint)) for joint in range(skeleton.num_joints)]
    return torch.tensor([[len(a ^ b) for b in paths] for a in paths])


@each_preset
def test_neighbours_are_one_bone_away(skeleton: Skeleton) -> None:
    assert adjacency(skeleton).equal(hops(skeleton) <= 1)


@pytest.mark.parametrize("skeleton", [H36M_16, COCO_17, SMPL_24], ids=repr)
@pytest.mark.parametrize("blocks", [0, 1])
def test_semgcn_sees_a_joint_further_per_layer(skeleton: Skeleton, blocks: int) -> None:
    model = used_a_while(SemGCN(skeleton, width=16, blocks=blocks))
    keypoints = torch.randn(4, skeleton.num_joints, 2)
    reach = 2 + 2 * blocks  # input and output layer, and two layers per block
    assert (hops(skeleton) > reach).any()
    for joint in range(skeleton.num_joints):
        seen = what_counts(model, keypoints, lambda joints, j=joint: joints[:, j]).sum(0) > 0
        assert seen.equal(hops(skeleton)[joint] <= reach)


def test_non_local_blocks_see_the_whole_body() -> None:
    model = used_a_while(SemGCN(width=16, blocks=0, non_local=True))
    wrist = H36M_16.joints.index("left_wrist")
    keypoints = torch.randn(64, 16, 2)
    assert what_counts(model, keypoints, lambda joints: joints[:, wrist]).sum(0).all()


def test_non_local_blocks_begin_as_the_identity() -> None:
    keypoints = torch.randn(4, 16, 2)
    model = SemGCN(width=16, non_local=True)
    plain = SemGCN(width=16)
    kept = [layer for layer in model.layers if type(layer).__name__ != "NonLocal"]
    assert len(model.layers) - len(kept) == 5  # after the first layer and after each block
    plain.layers.load_state_dict(nn.Sequential(*kept).state_dict())
    assert model(keypoints).equal(plain(keypoints))


def test_joint_groups_are_the_published_ones() -> None:
    # h36m_skeleton_joints_group of garyzhao/SemGCN
    published = {(2, 3), (5, 6), (1, 4), (0, 7), (8, 9), (14, 15), (11, 12), (10, 13)}
    groups = joint_groups(H36M_16)
    assert len(groups) == 8
    assert set(groups) == published


ONE_SHOULDER = Skeleton(
    "one shoulder of the torso's",
    parents={
        "hip": None,
        **{"left_shoulder": "hip", "left_elbow": "left_shoulder"},
        **{"right_shoulder": "hip", "right_elbow": "right_shoulder"},
    },
    parts={
        "left_arm": ("left_shoulder", "left_elbow"),
        "right_arm": ("right_elbow",),
        "torso": ("hip", "right_shoulder"),
    },
)


@pytest.mark.parametrize("skeleton", [*SKELETONS.values(), ONE_SHOULDER], ids=repr)
def test_every_joint_is_in_one_group(skeleton: Skeleton) -> None:
    groups = joint_groups(skeleton)
    assert sorted(j for group in groups for j in group) == list(range(skeleton.num_joints))
    assert max(map(len, groups)) == 2
    keypoints = torch.randn(2, skeleton.num_joints, 2)
    model = SemGCN(skeleton, width=8, blocks=1, non_local=True)
    assert model(keypoints).shape == (2, skeleton.num_joints, 3)


def test_groups_by_name() -> None:
    by_name = [[H36M_16.joints[j] for j in group] for group in joint_groups(H36M_16)]
    uneven = [[*by_name[0], *by_name[1]], *by_name[2:]]
    model = used_a_while(SemGCN(width=8, blocks=0, non_local=True))
    keypoints = torch.randn(4, 16, 2)
    for groups, same in ((by_name, True), (by_name[::-1], True), (uneven, False)):
        other = SemGCN(width=8, blocks=0, non_local=True, groups=groups).eval()
        other.load_state_dict(model.state_dict())
        assert torch.allclose(other(keypoints), model(keypoints), atol=1e-5) == same
    for wrong in (by_name[1:], [*by_name, ["hip"]], [*by_name, []], [["nose"], *by_name[1:]]):
        with pytest.raises(ValueError, match=r"expected each of hip, .* received"):
            SemGCN(non_local=True, groups=wrong)


def test_graph_convolution_by_hand() -> None:
    linked = adjacency(H36M_16)
    layer = used_a_while(SemGraphConv(2, 5, linked))
    features = torch.randn(16, 3, 2)
    own, others = layer.weight
    strengths = torch.zeros(16, 16)
    strengths[linked] = layer.link_strength.exp()
    expected = torch.zeros(16, 3, 5)
    for joint in range(16):
        share = strengths[joint] / strengths[joint].sum()
        for source in range(16):
            matrix = own if source == joint else others
            expected[joint] += share[source] * features[source] @ matrix.T
    assert torch.allclose(layer(features), expected + layer.bias, atol=1e-5)


# -- ST-GCN ----------------------------------------------------------------------------------------


def test_joint_kernels_split_the_neighbours_by_kind() -> None:
    itself, farther, nearer, mirror, forwards, backwards = joint_kernels(H36M_17, 3) > 0
    index = H36M_17.joints.index

    def node(joint: str, frame: int = 1) -> int:
        return 17 * frame + index(joint)

    def sources(kernel: Tensor, joint: str, frame: int = 1) -> set[int]:
        return set(kernel[:, node(joint, frame)].nonzero().flatten().tolist())

    assert itself.equal(torch.eye(51, dtype=torch.bool))
    assert sources(farther, "spine") == {node("hip"), node("thorax")}  # the body's centre
    assert sources(nearer, "spine") == set()
    assert sources(farther, "hip") == {node("left_hip"), node("right_hip")}
    assert sources(nearer, "hip") == {node("spine")}
    assert sources(nearer, "left_wrist") == {node("left_elbow")}
    assert sources(mirror, "left_wrist") == {node("right_wrist")}
    assert sources(mirror, "head") == set()
    assert sources(forwards, "head", 2) == {node("head", 1)}
    assert sources(forwards, "head", 0) == set()
    assert sources(backwards, "head", 0) == {node("head", 1)}
    assert sources(backwards, "head", 2) == set()


@each_preset
@pytest.mark.parametrize("frames", [1, 3])
def test_kernels_take_means(skeleton: Skeleton, frames: int) -> None:
    for kernels in (joint_kernels(skeleton, frames), part_kernels(skeleton, frames)):
        assert len(kernels) == (4 if frames == 1 else 6)
        assert ((kernels > 0).sum(0) <= 1).all()  # one kind per neighbour
        total = kernels.sum(0)
        assert torch.allclose(total.sum(0), torch.ones(len(total)))
        for weights in total.T:
            assert len(weights[weights > 0].unique()) == 1


def test_part_kernels_put_the_torso_in_the_middle() -> None:
    itself, farther, nearer, mirror = part_kernels(H36M_17, 1)
    names = [name for name, _ in H36M_17.part_joints]
    torso, arm, leg = (names.index(name) for name in ("torso", "left_arm", "left_leg"))
    assert itself.diagonal().all()
    assert farther[:, torso].count_nonzero() == 4
    assert farther.count_nonzero() == 4
    assert nearer[torso].count_nonzero() == 4
    assert nearer.count_nonzero() == 4
    assert mirror[arm].nonzero().tolist() == [[names.index("right_arm")]]
    assert mirror[leg].nonzero().tolist() == [[names.index("right_leg")]]
    assert not mirror[torso].any()


def test_graph_convolution_of_kinds_by_hand() -> None:
    kernels = joint_kernels(H36M_17, 1)
    layer, features = GraphConv(2, 5, kernels), torch.randn(17, 3, 2)
    weights, biases = layer.project.weight.view(4, 5, 2), layer.project.bias.view(4, 5)
    expected = torch.zeros(17, 3, 5)
    for kind, source, target in kernels.nonzero().tolist():
        sent = features[source] @ weights[kind].T + biases[kind]
        expected[target] += kernels[kind, source, target] * sent
    assert torch.allclose(layer(features), expected, atol=1e-5)


def test_stgcn_gives_the_middle_frame() -> None:
    model = used_a_while(STGCN(frames=7, widths=(8, 8, 16), part_width=16))
    keypoints = torch.randn(2, 7, 17, 2)
    every = model(keypoints, all_frames=True)
    assert every.shape == (2, 7, 17, 3)
    assert model(keypoints).equal(every[:, 3:4])
    assert not every[:, 3].equal(every[:, 2])


def test_stgcn_context_goes_up_and_down_through_the_parts() -> None:
    hourglass = used_a_while(STGCN(widths=(8, 8, 16), part_width=16)).hourglass
    features = torch.randn(17, 4, 16)
    context = hourglass(features)
    for name, joints in H36M_17.part_joints:
        assert context[list(joints)].std(0).max() < 1e-6, name  # one value a part
    assert context.std(0).max() > 1e-2
    lower = features.clone()
    lower[16] = features[14:17].amin(0) - 1  # no maximum of the right arm's
    wrist = torch.eye(17)[16, :, None, None]
    assert hourglass(lower).equal(hourglass(lower - wrist))
    assert not hourglass(lower).equal(hourglass(lower + 9 * wrist))


@each_preset
def test_stgcn_takes_any_skeleton(skeleton: Skeleton) -> None:
    model = STGCN(skeleton, frames=3, widths=(8, 8, 8), part_width=8)
    keypoints = torch.randn(2, 3, skeleton.num_joints, 2)
    assert model(keypoints).shape == (2, 1, skeleton.num_joints, 3)


# -- VideoPose3D -----------------------------------------------------------------------------------


@causal_or_not
@pytest.mark.parametrize("widths", [(3,), (3, 5), (5, 3, 3), (3, 1, 3)], ids=str)
def test_strided_is_dense(widths: tuple[int, ...], causal: bool) -> None:
    dense = used_a_while(TemporalModel(filter_widths=widths, causal=causal, channels=16))
    strided = StridedTemporalModel(filter_widths=widths, causal=causal, channels=16).eval()
    strided.load_state_dict(dense.state_dict())
    frames = dense.receptive_field()
    sequence = torch.randn(2, frames + 4, 17, 2)
    for start, pose in enumerate(dense(sequence).unbind(1)):
        window = sequence[:, start : start + frames]
        assert torch.allclose(strided(window), pose.unsqueeze(1), atol=1e-5)
    back = TemporalModel(filter_widths=widths, causal=causal, channels=16).eval()
    back.load_state_dict(strided.state_dict())
    assert back(sequence).equal(dense(sequence))


@both_forms
def test_receptive_field(form: type[TemporalModel]) -> None:
    model = used_a_while(form(filter_widths=(3, 5, 3), channels=8))
    assert model.receptive_field() == 45
    keypoints = torch.randn(8, 45, 17, 2)
    seen = what_counts(model, keypoints, lambda joints: joints).sum((0, 2))
    assert (seen > 0).all()
    assert form(filter_widths=(3,) * 5, channels=8).receptive_field() == 243


@causal_or_not
def test_padded_sequence_has_a_pose_per_frame(causal: bool) -> None:
    model = used_a_while(TemporalModel(filter_widths=(3, 3), causal=causal, channels=16))
    before, after = model.padding()
    assert (before, after) == ((8, 0) if causal else (4, 4))
    sequence = torch.randn(16, 20, 17, 2)

    def estimate(keypoints: Tensor) -> Tensor:
        first, last = keypoints[:, :1].detach(), keypoints[:, -1:].detach()
        padded = (first.expand(-1, before, -1, -1), keypoints, last.expand(-1, after, -1, -1))
        return model(torch.cat(padded, 1))

    assert estimate(sequence).shape == (16, 20, 17, 3)
    reached = sequence.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(estimate(reached)[:, 10].square().sum(), reached)
    seen = gradient.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
    assert seen == list(range(10 - before, 11 + after))


@causal_or_not
@both_forms
def test_the_way_around_keeps_the_posed_frame(form: type[TemporalModel], causal: bool) -> None:
    model = used_a_while(form(filter_widths=(1, 3, 5), causal=causal, channels=16))
    for block in model.blocks:
        nn.init.zeros_(block.layers[5].weight)  # the last normalisation: nothing but its bias
    keypoints = torch.randn(16, 15, 17, 2)
    seen = what_counts(model, keypoints, lambda joints: joints).sum((0, 2))
    assert seen.nonzero().flatten().tolist() == [14 if causal else 7]


def test_momentum_of_every_normalisation() -> None:
    model = TemporalModel(filter_widths=(3, 3), channels=8, momentum=0.05)

    def momenta() -> list[float | None]:
        return [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)]

    assert momenta() == [0.05] * 3
    model.set_momentum(0.001)
    assert momenta() == [0.001] * 3

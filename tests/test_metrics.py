"""The metrics against the reference code's numbers, slow loops and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poseaug_plugin.errors import PoseAugError
from poseaug_plugin.metrics import AUC_THRESHOLDS, auc, mpjpe, mpjve, n_mpjpe, p_mpjpe, pck

GOLDEN = golden("metrics")
PER_POSE = {"mpjpe": mpjpe, "p_mpjpe": p_mpjpe, "n_mpjpe": n_mpjpe}
REDUCIBLE = {**PER_POSE, "mpjve": mpjve}
ALL = {**REDUCIBLE, "pck": pck, "auc": auc}

each_per_pose = pytest.mark.parametrize("name", PER_POSE)
each_reducible = pytest.mark.parametrize("name", REDUCIBLE)
each_metric = pytest.mark.parametrize("name", ALL)
each_case = pytest.mark.parametrize("case", ["A", "B"])


def poses(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random poses (*shape, 3), about as large as a person."""
    generator = torch.Generator().manual_seed(seed)
    return (0.5 * torch.randn(*shape, 3, generator=generator, dtype=torch.float64)).to(dtype)


def pair(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A prediction about 0.1 off, and its target."""
    target = poses(*shape, dtype=dtype)
    return target + 0.2 * poses(*shape, seed=1, dtype=dtype), target


def rotations(*shape: int, seed: int = 2) -> Tensor:
    """Random proper rotations (*shape, 3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64)).Q
    return q * torch.linalg.det(q)[..., None, None]


def similar(pose: Tensor) -> Tensor:
    """Each pose rotated, scaled by 0.3 to 3 and moved."""
    lead = pose.shape[:-2]
    generator = torch.Generator().manual_seed(3)
    scale = 0.3 + 2.7 * torch.rand(*lead, 1, 1, generator=generator, dtype=torch.float64)
    return scale * pose @ rotations(*lead) + poses(*lead, 1, seed=4)


def same(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-9 relative, in dtype and shape too; 1e-12 (a picometre) covers exact zeros."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


# -- the reference code's numbers ------------------------------------------------------------------


@each_case
@each_per_pose
def test_golden_position_errors(name: str, case: str) -> None:
    metric, predicted, target = PER_POSE[name], GOLDEN[f"{case}/pred"], GOLDEN[f"{case}/target"]
    same(metric(predicted, target), GOLDEN[f"{case}/{name}"])
    each = metric(predicted, target, reduction="none")
    assert each.shape == predicted.shape[:-2]
    same(each.flatten(), GOLDEN[f"{case}/{name}_per_pose"])


def test_golden_mpjpe_gradient() -> None:
    predicted = GOLDEN["B/pred"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mpjpe(predicted, GOLDEN["B/target"]), predicted)
    same(gradient, GOLDEN["B/mpjpe_grad_pred"])


@each_case
def test_golden_mean_velocity_error_along_the_first_axis(case: str) -> None:
    # The reference differences axis 0 whatever it is; seen as frames it is the same measure.
    predicted, target = (GOLDEN[f"{case}/{key}"] for key in ("pred", "target"))
    if case == "B":
        predicted, target = predicted.transpose(0, 1), target.transpose(0, 1)
    same(mpjve(predicted, target), GOLDEN[f"{case}/mean_velocity_error_axis0"])


def test_golden_mean_velocity_error_per_sequence() -> None:
    each = mpjve(GOLDEN["B/pred"], GOLDEN["B/target"], reduction="none")
    same(each, GOLDEN["B/mean_velocity_error_per_sequence"])
    same(mpjve(GOLDEN["B/pred"], GOLDEN["B/target"]), each.mean())


@each_case
@pytest.mark.parametrize(("suffix", "first"), [("", 0), ("_without_root", 1)])
def test_golden_pck_and_auc(suffix: str, first: int, case: str) -> None:
    predicted, target = (GOLDEN[f"{case}/{key}"][..., first:, :] for key in ("pred", "target"))
    same(pck(predicted, target), GOLDEN[f"{case}/pck150{suffix}"])
    same(auc(predicted, target), GOLDEN[f"{case}/auc{suffix}"])


@each_case
def test_golden_pck_at_every_threshold(case: str) -> None:
    same(torch.tensor(AUC_THRESHOLDS, dtype=torch.float64) * 1000, GOLDEN[f"{case}/thresholds_mm"])
    predicted, target = GOLDEN[f"{case}/pred"], GOLDEN[f"{case}/target"]
    curve = torch.stack([pck(predicted, target, threshold=t) for t in AUC_THRESHOLDS])
    same(curve, GOLDEN[f"{case}/pck_per_threshold"])


@pytest.mark.parametrize("name", ["mpjpe", "p_mpjpe", "n_mpjpe", "pck150", "auc"])
def test_golden_comparisons_can_fail(name: str) -> None:
    expected = GOLDEN[f"A/{name}"]
    for wrong in (expected * (1 + 1e-8), expected.float(), expected[None], expected * math.nan):
        with pytest.raises(AssertionError):
            same(wrong, expected)


# -- slow loops ------------------------------------------------------------------------------------


def distances(predicted: Tensor, target: Tensor) -> list[list[float]]:
    """Joint distances of each pose, in plain Python."""
    return [
        [math.dist(p, t) for p, t in zip(p_pose, t_pose, strict=True)]
        for p_pose, t_pose in zip(predicted.tolist(), target.tolist(), strict=True)
    ]


small_sizes = st.tuples(st.integers(1, 4), st.integers(1, 6))


@settings(max_examples=25, deadline=None)
@given(small_sizes, st.integers(0, 2**31))
def test_mpjpe_is_what_a_loop_finds(size: tuple[int, int], seed: int) -> None:
    predicted, target = poses(*size, seed=seed), poses(*size, seed=seed + 1)
    expected = [sum(pose) / len(pose) for pose in distances(predicted, target)]
    same(mpjpe(predicted, target, reduction="none"), torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(small_sizes, st.integers(0, 2**31), st.lists(st.floats(0, 2), min_size=1, max_size=5))
def test_pck_and_auc_are_what_a_loop_counts(
    size: tuple[int, int], seed: int, thresholds: list[float]
) -> None:
    predicted, target = poses(*size, seed=seed), poses(*size, seed=seed + 1)
    errors = [e for pose in distances(predicted, target) for e in pose]
    curve = [100 * sum(e < t for e in errors) / len(errors) for t in thresholds]
    for threshold, expected in zip(thresholds, curve, strict=True):
        assert pck(predicted, target, threshold=threshold).item() == pytest.approx(expected)
    area = auc(predicted, target, thresholds=thresholds).item()
    assert area == pytest.approx(sum(curve) / len(curve))


def test_mpjve_is_what_a_loop_finds() -> None:
    predicted, target = pair(2, 5, 3)
    expected = []
    for p, t in zip(predicted, target, strict=True):
        jumps = distances(p[1:] - p[:-1], t[1:] - t[:-1])
        expected.append(sum(map(sum, jumps)) / (4 * 3))
    same(mpjve(predicted, target, reduction="none"), torch.tensor(expected, dtype=torch.float64))


def test_p_mpjpe_scales_by_least_squares() -> None:
    # Both on a line and centred, so the scale is <p, t> / <p, p> = 3 / 6 and the rotation none.
    predicted = torch.tensor([[-1.0, 0, 0], [2, 0, 0], [-1, 0, 0]], dtype=torch.float64)
    target = torch.tensor([[-1.0, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64).mean()
    same(p_mpjpe(7 * predicted - 2, target), expected)


# -- what must not matter, and what must -----------------------------------------------------------


def test_p_mpjpe_ignores_a_similarity_transform() -> None:
    predicted, target = pair(3, 5, 17)
    same(p_mpjpe(similar(target), target), target.new_zeros(()))
    same(p_mpjpe(similar(predicted), target), p_mpjpe(predicted, target))
    assert p_mpjpe(predicted, target) > 0.01


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_p_mpjpe_does_not_forgive_a_mirrored_pose(axis: int) -> None:
    target = poses(20, 17)
    mirror = torch.ones(3, dtype=torch.float64)
    mirror[axis] = -1
    assert p_mpjpe(similar(target * mirror), target, reduction="none").min() > 0.05
    # A flat pose is its own mirror image up to a half turn.
    flat = target * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    same(p_mpjpe(similar(flat * mirror), flat), target.new_zeros(()))


def test_n_mpjpe_ignores_scale_only() -> None:
    predicted, target = pair(4, 17)
    same(n_mpjpe(0.01 * predicted, target), n_mpjpe(predicted, target))
    same(n_mpjpe(5 * target, target), target.new_zeros(()))
    assert n_mpjpe(target + 1, target) > 0.1
    assert n_mpjpe(target @ rotations().mT, target) > 0.1


def test_mpjve_ignores_a_constant_offset_only() -> None:
    _, target = pair(2, 9, 17)
    same(mpjve(target + poses(2, 1, 17, seed=5), target), target.new_zeros(()))
    drift = torch.arange(9, dtype=torch.float64)[:, None, None] * torch.tensor([0.0, 3.0, 4.0])
    same(mpjve(target + drift, target), target.new_tensor(5.0))


@each_reducible
def test_the_unit_of_the_input_is_the_unit_of_the_result(name: str) -> None:
    predicted, target = pair(6, 17)
    metric = REDUCIBLE[name] if name != "mpjve" else (lambda p, t: mpjve(p[None], t[None]))
    same(metric(1000 * predicted, 1000 * target), 1000 * metric(predicted, target))
    assert metric(predicted, target) > 0.01


def test_pck_is_strict_and_counts_percent() -> None:
    errors = torch.tensor([0.0, 0.125, 0.25, 0.5], dtype=torch.float64)
    predicted = errors[:, None] * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    target = torch.zeros_like(predicted)
    assert pck(predicted, target, threshold=0.25).item() == 50
    assert pck(predicted, target, threshold=0.0).item() == 0
    assert pck(predicted, target).item() == 50
    assert auc(predicted, target, thresholds=[0.25, 0.0]).item() == 25


def test_auc_of_a_perfect_prediction_is_thirty_out_of_thirty_one() -> None:
    assert auc(poses(4, 17), poses(4, 17)).item() == pytest.approx(100 * 30 / 31)


# -- shapes, dtypes, memory layouts ----------------------------------------------------------------


@each_per_pose
@pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3), (2, 1, 3), (0,)])
def test_any_leading_axes(name: str, lead: tuple[int, ...]) -> None:
    predicted, target = pair(*lead, 17)
    each = PER_POSE[name](predicted, target, reduction="none")
    alone = [
        PER_POSE[name](p, t)
        for p, t in zip(predicted.reshape(-1, 17, 3), target.reshape(-1, 17, 3), strict=True)
    ]
    expected = torch.stack(alone) if alone else target.new_empty(0)
    same(each, expected.reshape(lead))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_mpjve_any_leading_axes(lead: tuple[int, ...]) -> None:
    predicted, target = pair(*lead, 8, 17)
    each = mpjve(predicted, target, reduction="none")
    assert each.shape == lead
    same(each.mean(), mpjve(predicted, target))


@each_metric
def test_float32_is_close_to_float64(name: str) -> None:
    predicted, target = pair(64, 8, 17)
    exact = ALL[name](predicted, target)
    single = ALL[name](predicted.float(), target.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)
    assert ALL[name](predicted.float(), target).dtype == torch.float64


@each_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_evaluated_in_float32(name: str, dtype: torch.dtype) -> None:
    predicted, target = (pose.to(dtype) for pose in pair(4, 8, 17))
    same(ALL[name](predicted, target), ALL[name](predicted.float(), target.float()))


@each_metric
def test_autocast_costs_no_precision(name: str) -> None:
    predicted, target = pair(4, 8, 17, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ALL[name](predicted, target)
    same(inside, ALL[name](predicted, target))


@each_metric
def test_memory_layout_does_not_matter_and_inputs_are_kept(name: str) -> None:
    predicted, target = pair(4, 8, 17)
    scattered = [pose.transpose(0, 2).contiguous().transpose(0, 2) for pose in (predicted, target)]
    assert not scattered[0].is_contiguous()
    same(ALL[name](*scattered), ALL[name](predicted, target))
    assert torch.equal(predicted, pair(4, 8, 17)[0])
    assert torch.equal(target, pair(4, 8, 17)[1])


@each_metric
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(name: str) -> None:
    predicted, target = pair(4, 8, 17)
    result = ALL[name](predicted.cuda(), target.cuda())
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), ALL[name](predicted, target), rtol=1e-9, atol=1e-12)


# -- poses that are hardly poses -------------------------------------------------------------------

POINTS = {
    "origin": torch.zeros(17, 3),
    # 0.1 is not representable: what is left after centring is rounding, not zero.
    "elsewhere": torch.tensor([0.1, -2.7, 5.3]).expand(17, 3),
    "far": torch.tensor([1e4, 1e4, 1e4]).expand(17, 3) / 3,
}


@each_reducible
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("point", POINTS)
def test_all_joints_in_one_point(name: str, dtype: torch.dtype, point: str) -> None:
    metric, pose = REDUCIBLE[name], poses(2, 17, dtype=dtype)
    collapsed = POINTS[point].to(dtype).expand(2, 17, 3)
    for predicted, target in ((collapsed, pose), (pose, collapsed), (collapsed, collapsed)):
        assert metric(predicted, target).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("point", POINTS)
def test_p_mpjpe_moves_a_collapsed_prediction_to_the_centroid(
    dtype: torch.dtype, point: str
) -> None:
    target = poses(17, dtype=dtype)
    centroid_distance = (target - target.mean(0)).norm(dim=-1).mean()
    error = p_mpjpe(POINTS[point].to(dtype), target)
    torch.testing.assert_close(error, centroid_distance)


def test_n_mpjpe_of_an_all_zero_prediction_is_the_size_of_the_target() -> None:
    target = poses(3, 17)
    same(n_mpjpe(torch.zeros_like(target), target), target.norm(dim=-1).mean())


@each_per_pose
@pytest.mark.parametrize("joints", [1, 2, 3])
def test_few_joints(name: str, joints: int) -> None:
    predicted, target = pair(5, joints)
    assert PER_POSE[name](predicted, target).isfinite()
    same(PER_POSE[name](target, target), target.new_zeros(()))


@each_per_pose
def test_a_broken_pose_does_not_spoil_its_neighbours(name: str) -> None:
    predicted, target = pair(4, 17)
    expected = PER_POSE[name](predicted, target, reduction="none")
    predicted[1, 3, 0] = math.nan
    predicted[2, 5] = math.inf
    each = PER_POSE[name](predicted, target, reduction="none")
    same(each[[0, 3]], expected[[0, 3]])
    assert not each[1:3].isfinite().any()


def test_nan_joints_count_as_wrong() -> None:
    predicted, target = torch.zeros(4, 3), torch.zeros(4, 3)
    predicted[0] = math.nan
    assert pck(predicted, target).item() == 75
    assert auc(predicted, target, thresholds=[0.1, 0.2]).item() == 75


# -- gradients -------------------------------------------------------------------------------------


@each_reducible
def test_gradients_are_right(name: str) -> None:
    predicted, target = pair(2, 3, 5)
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(REDUCIBLE[name], (predicted, target))


@pytest.mark.parametrize("name", ["mpjpe", "n_mpjpe", "mpjve"])
def test_the_gradient_of_a_perfect_prediction_is_finite(name: str) -> None:
    target = torch.zeros(2, 3, 5, 3)
    predicted = target.clone().requires_grad_()
    REDUCIBLE[name](predicted, target).backward()
    assert predicted.grad is not None
    assert torch.equal(predicted.grad, torch.zeros_like(target))


def test_p_mpjpe_runs_backward_on_a_collapsed_pose() -> None:
    predicted = torch.zeros(2, 17, 3, requires_grad=True)
    p_mpjpe(predicted, poses(2, 17, dtype=torch.float32)).backward()
    assert predicted.grad is not None
    assert predicted.grad.shape == (2, 17, 3)


# -- errors ----------------------------------------------------------------------------------------


def message(metric, *args, **kwargs) -> str:
    with pytest.raises(PoseAugError) as caught:
        metric(*args, **kwargs)
    return str(caught.value)


@each_metric
@pytest.mark.parametrize("shape", [(4, 17, 2), (3,), ()])
def test_poses_must_be_three_dimensional(name: str, shape: tuple[int, ...]) -> None:
    pose = torch.zeros(shape)
    expected = f"{name}: predicted must be (..., joints, 3), got {shape}."
    assert message(ALL[name], pose, pose) == expected


@each_metric
def test_shapes_must_agree(name: str) -> None:
    # These would broadcast in silence.
    assert message(ALL[name], torch.zeros(4, 5, 17, 3), torch.zeros(5, 17, 3)) == (
        f"{name}: predicted and target must have the same shape, got (4, 5, 17, 3) and (5, 17, 3)."
    )


@each_metric
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_poses_must_be_floating_point(name: str, dtype: torch.dtype) -> None:
    pose = torch.zeros(4, 17, 3)
    beginning = f"{name}: predicted and target must be floating point, got"
    assert message(ALL[name], pose.to(dtype), pose) == f"{beginning} {dtype} and torch.float32."
    assert message(ALL[name], pose, pose.to(dtype)) == f"{beginning} torch.float32 and {dtype}."


@each_reducible
def test_reduction_must_be_known(name: str) -> None:
    pose = torch.zeros(4, 17, 3)
    expected = f"{name}: reduction must be one of mean, none, got 'sum'."
    assert message(REDUCIBLE[name], pose, pose, reduction="sum") == expected


@pytest.mark.parametrize("shape", [(17, 3), (1, 17, 3), (6, 1, 17, 3)])
def test_mpjve_needs_two_frames(shape: tuple[int, ...]) -> None:
    assert message(mpjve, torch.zeros(shape), torch.zeros(shape)) == (
        f"mpjve: predicted must be (..., frames, joints, 3) with two frames or more, got {shape}."
    )


def test_auc_needs_thresholds() -> None:
    pose = torch.zeros(17, 3)
    assert message(auc, pose, pose, thresholds=[]) == "auc: thresholds must not be empty."

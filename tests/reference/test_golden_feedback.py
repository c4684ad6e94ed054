"""Penalties, feedback and learning rate against the numbers of the reference code.

See tests/golden/README.md. Nothing here depends on the numbers themselves: another set with the
same keys serves as well.
"""

from __future__ import annotations

import pytest
import torch
from helpers import agree, below, golden, gradient, leaf
from torch import Tensor, nn

from poseaug_plugin.adversary.critics import rectified_mean
from poseaug_plugin.body.bones import root_relative
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.host.adapter import PoseAdapter
from poseaug_plugin.options import Options, Surroundings, UpdateContext
from poseaug_plugin.reference.recipes import (
    Ramp,
    Released,
    dead_zone,
    estimator_errors,
    joint_weights,
    paper_feedback,
    released_feedback,
)
from poseaug_plugin.runtime.isolation import TorchDefaults

LOSSES = golden("losses")


# -- penalties -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["scalar_center", "mean_gamma"])
def test_dead_zone(case: str) -> None:
    own = below(LOSSES, f"diff_range_loss/{case}/")
    values = leaf(own["a"])
    loss = dead_zone(values, own["b"].item(), own["std"].item()).mean()
    agree(loss, own["out"])
    agree(gradient(loss, values), own["grad_a"])


def test_dead_zone_around_several_centres() -> None:
    own = below(LOSSES, "diff_range_loss/tensor_center/")
    values = leaf(own["a"])
    loss = dead_zone(values - own["b"], 0.0, own["std"].item()).mean()
    agree(loss, own["out"])
    agree(gradient(loss, values), own["grad_a"])


def test_dead_zone_around_zero_is_the_rectified_loss() -> None:
    own = below(LOSSES, "rectifiedL2loss/")
    ratios = leaf(own["gamma"])
    loss = dead_zone(ratios, 0.0, own["threshold"].item()).mean()
    agree(loss, own["out"])
    agree(gradient(loss, ratios), own["grad_gamma"])


def test_range_loss_is_the_sum_of_two_dead_zones() -> None:
    own = below(LOSSES, "get_diff_loss/")
    centre, half_width = (LOSSES[f"diff_range_loss/mean_gamma/{k}"].item() for k in ("b", "std"))
    turned, ratios = leaf(own["ba_diff"]), leaf(own["blr"])
    angle = dead_zone(turned.mean(-1), centre, half_width).mean()
    length = dead_zone(ratios, 0.0, LOSSES["rectifiedL2loss/threshold"].item()).mean()
    agree(angle, own["log/train_G_iter_diff_loss_loss_diff_angle"])
    agree(length, own["log/train_G_iter_diff_loss_loss_diff_blr"])
    agree(angle + length, own["out"])
    agree(gradient(angle + length, turned), own["grad_ba_diff"])
    agree(gradient(angle + length, ratios), own["grad_blr"])


# -- feedback --------------------------------------------------------------------------------------

EPOCHS: list[int] = LOSSES["feedback/epochs"].tolist()
SOURCES = {"origin": "inputs", "ba": "outputs", "rt": "outputs"}


def source_names(which: str) -> tuple[str, str]:
    """Keys of the 2D and of the 3D poses of one of the three kinds."""
    ending = "" if which == "origin" else f"_{which}"
    return f"{SOURCES[which]}_2d{ending}", f"{SOURCES[which]}_3d{ending}"


def reference_errors(keypoints: Tensor, joints: Tensor, kind: str) -> Tensor:
    """Errors of the linear estimator of the golden file."""
    predicted = keypoints.flatten(1) @ LOSSES["posenet/weight"].T + LOSSES["posenet/bias"]
    target = root_relative(joints, H36M_16)
    return estimator_errors(predicted.view_as(target)[:, None], target[:, None], kind, H36M_16)


def errors_of(which: str, kind: str) -> Tensor:
    return reference_errors(*(LOSSES[f"feedback/{name}"] for name in source_names(which)), kind)


def reference_ramp(column: int) -> Ramp:
    """The straight line through the hard ratios of the first and of the last recorded epoch."""
    ratios = LOSSES["feedback/hardratio_ba_rt"][:, column].tolist()
    total = LOSSES["feedback/total_epochs"].item()
    slope = (ratios[-1] - ratios[0]) / (EPOCHS[-1] - EPOCHS[0]) * total
    start = ratios[0] - slope * EPOCHS[0] / total
    return Ramp(start, start + slope)


def target_ratios(epoch: int) -> list[float]:
    progress = epoch / LOSSES["feedback/total_epochs"].item()
    return [reference_ramp(column).at(progress) for column in (0, 1)]


def test_joint_weights() -> None:
    weights = torch.tensor(joint_weights(H36M_16), dtype=torch.float64)
    agree(weights, LOSSES["feedback/joint_weights"])


@pytest.mark.parametrize("which", ["origin", "ba", "rt"])
def test_grouped_errors(which: str) -> None:
    agree(errors_of(which, "grouped"), LOSSES[f"feedback/err_{which}"])


@pytest.mark.parametrize("column", [0, 1])
def test_hardness_ramps_are_straight(column: int) -> None:
    total = LOSSES["feedback/total_epochs"].item()
    values = [reference_ramp(column).at(epoch / total) for epoch in EPOCHS]
    recorded = LOSSES["feedback/hardratio_ba_rt"][:, column]
    agree(torch.tensor(values, dtype=torch.float64), recorded)


@pytest.mark.parametrize("epoch", EPOCHS)
def test_released_feedback(epoch: int) -> None:
    expected = below(LOSSES, f"feedback/e{epoch:02}/")
    leaves = {n: leaf(LOSSES[f"feedback/{n}"]) for which in SOURCES for n in source_names(which)}
    origin, *harder = (
        reference_errors(*(leaves[name] for name in source_names(which)), "grouped")
        for which in SOURCES
    )
    tolerances = LOSSES["feedback/args_std_ba_rt"].tolist()
    factors = LOSSES["feedback/args_factorfeedback_ba_rt"].tolist()
    total = torch.zeros((), dtype=torch.float64)
    for name, errors, ratio, tolerance, factor in zip(
        ("ba", "rt"), harder, target_ratios(epoch), tolerances, factors, strict=True
    ):
        loss = released_feedback(errors, origin, ratio, tolerance)
        agree(loss.mean(), expected[f"{name}_hard_mean_loss"])
        agree((loss > 0).double().mean(), expected[f"{name}_active_fraction"])
        total = total + factor * loss.mean()
    agree(total, expected["loss"])
    for name, numbers in below(expected, "grad_").items():
        agree(gradient(total, leaves[name]), numbers)


# In the error that `estimator_errors` computes, or as it was recorded.
KINDS = {"group_errors": "grouped", "mpjpe": None, "mse": None, "sqnorm": "squared_norm"}


@pytest.mark.parametrize("which", ["origin", "ba", "rt"])
def test_squared_norms(which: str) -> None:
    agree(errors_of(which, "squared_norm")[:, 0], LOSSES[f"paper/L_P_{which}_sqnorm"])


@pytest.mark.parametrize("which", ["ba", "rt"])
@pytest.mark.parametrize("kind", KINDS)
def test_paper_feedback(which: str, kind: str) -> None:
    computed = KINDS[kind]
    harder, easier = (
        errors_of(w, computed) if computed else LOSSES[f"paper/L_P_{w}_{kind}"][:, None]
        for w in (which, "origin")
    )
    betas = LOSSES["paper/beta"].tolist()
    losses = torch.stack([paper_feedback(harder, easier, beta) for beta in betas])
    expected = LOSSES[f"paper/fb_{which}_{kind}"]
    agree(losses.reshape(expected.shape), expected)


@pytest.mark.parametrize("case", ["reg_ba", "reg_bl", "reg_bl_abs"])
def test_rectified_mean(case: str) -> None:
    own = below(LOSSES, f"paper/{case}/")
    each = rectified_mean(own["gamma"], own["threshold"].item())
    agree(each, own["per_sample_formula"])
    agree(each.mean(), own["mean_formula"])


@pytest.mark.parametrize("case", ["reg_ba", "reg_bl", "reg_bl_abs"])
def test_dead_zone_of_means(case: str) -> None:
    own = below(LOSSES, f"paper/{case}/")
    threshold, means = own["threshold"].item(), own["gamma"].mean(-1)
    agree(dead_zone(means, 0.0, threshold).mean(), own["reference_rectifiedL2_of_mean"])
    of_batch = dead_zone(means.mean(), 0.0, threshold)
    agree(of_batch, own["reference_rectifiedL2_of_batch_mean"])


# -- learning rate ---------------------------------------------------------------------------------


def test_learning_rate_multiplier() -> None:
    expected = LOSSES["lr_multiplier_after_k_steps"]
    steps, actual = len(expected), []
    surroundings = Surroundings(nn.Identity(), PoseAdapter(), H36M_16, torch.Generator())
    preset = Released(width=4, learning_rate=1.0)
    training = preset.build(Options(total_updates=steps), surroundings)
    for step in range(steps):
        context = UpdateContext(None, None, TorchDefaults.found())
        actual.append(training.before_update(step, context))
    agree(torch.tensor(actual, dtype=torch.float64), expected)

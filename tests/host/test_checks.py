"""Joint orders that are not the skeleton's are told by a body's own proportions."""

from __future__ import annotations

import math

import pytest
import torch
from shared.motion import source_motion
from torch import Tensor

from poseaug_plugin.body.presets import COCO_17, H36M_17, MPI_INF_3DHP_17, SMPL_24
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.host.checks import (
    BatchReport,
    _problems,
    asymmetry,
    detour,
    knees_forward_share,
    length_variation,
)

SWAPPED = {
    "arms for legs": [0, 14, 15, 16, 11, 12, 13, 7, 8, 9, 10, 4, 5, 6, 1, 2, 3],
    "spine for thorax": [0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16],
    "legs from the foot up": [0, 3, 2, 1, 6, 5, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
}


@pytest.fixture(scope="module")
def people() -> Tensor:
    """(N, 1, 17, 3) walking, reaching, sitting people in Human3.6M's order, metres."""
    clips = [clip for clips in source_motion().values() for clip in clips.values()]
    return torch.cat([torch.from_numpy(clip)[::20] for clip in clips]).float().unsqueeze(1)


def complaints(joints: Tensor, skeleton: Skeleton = H36M_17) -> str:
    good = BatchReport((), False, 2.29, 1.0, 5.0, 4.0, 0.0, 0.0, 1.0, 1.0, 1.0, "", 0.0, 2.29)
    report = good._replace(
        asymmetry=asymmetry(joints, skeleton),
        length_variation=length_variation(joints, skeleton),
        detour=detour(joints, skeleton),
        knees_forward_share=knees_forward_share(joints, skeleton),
    )
    return "\n".join(_problems(report, skeleton))


def test_right_order_is_no_problem(people: Tensor) -> None:
    assert complaints(people) == ""
    assert knees_forward_share(people, H36M_17) > 0.9
    assert length_variation(people, H36M_17) < 0.2


@pytest.mark.parametrize("name", SWAPPED)
def test_orderly_mistakes_make_a_detour(name: str, people: Tensor) -> None:
    wrong = people[:, :, SWAPPED[name]]
    assert asymmetry(wrong, H36M_17) < 0.05
    assert "as long as the shortest tree through the joints: is the joint order" in complaints(
        wrong
    )


@pytest.mark.parametrize("seed", range(10))
def test_any_shuffled_order_is_seen(seed: int, people: Tensor) -> None:
    order = torch.randperm(17, generator=torch.Generator().manual_seed(seed))
    assert "is the joint order that of 'h36m_17'" in complaints(people[:, :, order])


def test_swapped_sides_are_seen(people: Tensor) -> None:
    swapped = people[:, :, list(H36M_17.flip_permutation)]
    mirrored = people * torch.tensor([-1.0, 1.0, 1.0])
    for wrong in (swapped, mirrored):
        assert "left and right joints are swapped" in complaints(wrong)
    flipped = mirrored[:, :, list(H36M_17.flip_permutation)]
    assert complaints(flipped) == ""


def test_variable_bone_is_seen(people: Tensor) -> None:
    elastic = people.clone()
    elastic[::2, :, 10] += torch.tensor([0.0, 0.0, 0.4])
    assert "length varies by" in complaints(elastic)
    assert math.isnan(length_variation(elastic[:8], H36M_17))


def test_detour_is_that_of_the_shortest_tree() -> None:
    # Joints on a line, in order: the chain is the shortest tree; hung from the far end it is not.
    line = torch.arange(3.0)[None, None, :, None] * torch.tensor([1.0, 0.0, 0.0])
    parts = {"torso": ("a", "b", "c")}
    chain = Skeleton("chain", {"a": None, "b": "a", "c": "b"}, parts)
    star = Skeleton("star", {"a": None, "c": "a", "b": "c"}, {"torso": ("a", "c", "b")})
    assert detour(line, chain) == pytest.approx(1.0)
    assert detour(line, star) == pytest.approx(1.0)
    assert detour(line[:, :, [0, 2, 1]], chain) == pytest.approx(1.5)


@pytest.mark.parametrize("skeleton", [MPI_INF_3DHP_17, SMPL_24], ids=lambda s: s.name)
def test_presets_with_whole_legs_have_knees(skeleton: Skeleton) -> None:
    poses = torch.randn(64, 1, skeleton.num_joints, 3, generator=torch.Generator().manual_seed(0))
    assert 0.2 < knees_forward_share(poses, skeleton) < 0.8


def test_coco_has_no_hips_to_bend_from() -> None:
    assert math.isnan(knees_forward_share(torch.randn(4, 1, 17, 3), COCO_17))

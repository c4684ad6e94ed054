"""Skeletons as data: the presets' derived tables, and what a user's own skeleton must fulfil."""

from __future__ import annotations

import copy
import pickle

import pytest
from helpers import PARENTS, PARTS, REFERENCE_PARTS, golden

from poseaug_plugin.body.presets import H36M_16, H36M_17, SKELETONS, find_skeleton
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.errors import PoseAugError

KINEMATICS, KCS = golden("kinematics"), golden("kcs")

each_preset = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)


def mirrored(name: str) -> str:
    """The name of the joint on the other side."""
    swap = {"left": "right", "right": "left"}
    side, _, rest = name.partition("_")
    return f"{swap[side]}_{rest}" if side in swap else name


# -- the 16 joints of Human3.6M and the tables of the released code --------------------------------


def test_h36m_16_bones() -> None:
    assert list(H36M_16.bone_children) == KINEMATICS["bone_child"].tolist()
    assert list(H36M_16.bone_parents) == KINEMATICS["bone_parent"].tolist()


@pytest.mark.parametrize("skeleton", [H36M_16, H36M_17], ids=repr)
def test_h36m_parents(skeleton: Skeleton) -> None:
    parents = KINEMATICS[f"skeleton_parents_{skeleton.num_joints}"].tolist()
    assert list(skeleton.parent_indices) == parents


def test_h36m_16_length_groups() -> None:
    assert list(H36M_16.bone_length_groups) == KINEMATICS["blr_group_of_bone"].tolist()


@pytest.mark.parametrize("part", REFERENCE_PARTS)
def test_h36m_16_part_bones(part: str) -> None:
    bones = dict(H36M_16.part_bones)[REFERENCE_PARTS[part]]
    assert list(bones) == KCS[f"bones_{part}"].tolist()


def test_h36m_16_sizes() -> None:
    sizes = (H36M_16.num_joints, H36M_16.num_bones, H36M_16.num_bone_length_groups, H36M_16.root)
    assert sizes == (16, 15, 9, 0)


# -- every preset ----------------------------------------------------------------------------------


@each_preset
def test_flip_is_an_involution(skeleton: Skeleton) -> None:
    flip = skeleton.flip_permutation
    assert [flip[flip[j]] for j in range(skeleton.num_joints)] == list(range(skeleton.num_joints))


@each_preset
def test_flip_swaps_left_and_right(skeleton: Skeleton) -> None:
    flipped = [skeleton.joints[j] for j in skeleton.flip_permutation]
    assert flipped == [mirrored(joint) for joint in skeleton.joints]


@each_preset
def test_flip_maps_bones_to_bones(skeleton: Skeleton) -> None:
    flip = skeleton.flip_permutation
    bones = set(zip(skeleton.bone_parents, skeleton.bone_children, strict=True))
    assert {(flip[parent], flip[child]) for parent, child in bones} == bones


@each_preset
def test_exactly_mirrored_bones_share_a_length_group(skeleton: Skeleton) -> None:
    flip, groups = skeleton.flip_permutation, skeleton.bone_length_groups
    for child, group in zip(skeleton.bone_children, groups, strict=True):
        members = {c for c, g in zip(skeleton.bone_children, groups, strict=True) if g == group}
        assert members == {child, flip[child]}


@each_preset
def test_length_groups_are_numbered_in_the_order_of_bones(skeleton: Skeleton) -> None:
    first_seen = list(dict.fromkeys(skeleton.bone_length_groups))
    assert first_seen == list(range(skeleton.num_bone_length_groups))


@each_preset
def test_every_bone_is_judged_by_a_part(skeleton: Skeleton) -> None:
    covered = {b for _, bones in skeleton.part_bones for b in bones}
    assert covered == set(range(skeleton.num_bones))


@each_preset
def test_parts_of_left_and_right_see_mirrored_bones(skeleton: Skeleton) -> None:
    flip, parts = skeleton.flip_permutation, dict(skeleton.part_bones)
    for name, bones in parts.items():
        children = {flip[skeleton.bone_children[b]] for b in bones}
        assert children == {skeleton.bone_children[b] for b in parts[mirrored(name)]}


@each_preset
def test_parts_share_bones(skeleton: Skeleton) -> None:
    # A limb's angle against the body is judged only if its critic sees some of the body too.
    parts = dict(skeleton.part_bones)
    torso = set(parts.pop("torso"))
    assert all(torso & set(bones) for bones in parts.values())


@each_preset
def test_limbs_are_arms_and_legs(skeleton: Skeleton) -> None:
    assert {name for name, _ in skeleton.limbs} == {
        "left_arm",
        "right_arm",
        "left_leg",
        "right_leg",
    }


@each_preset
def test_joints_are_reached_along_their_bones(skeleton: Skeleton) -> None:
    for joint in range(skeleton.num_joints):
        path = skeleton.bones_to_root(joint)
        reached = joint
        for bone in path:
            assert skeleton.bone_children[bone] == reached
            reached = skeleton.bone_parents[bone]
        assert reached == skeleton.root


def test_the_seventeenth_joint_is_the_neck() -> None:
    assert [j for j in H36M_17.joints if j != "neck"] == list(H36M_16.joints)


def test_presets_are_found_by_their_name() -> None:
    for name, skeleton in SKELETONS.items():
        assert skeleton.name == name
        assert find_skeleton(name) is skeleton
        assert find_skeleton(skeleton) is skeleton


def test_an_unknown_preset_is_refused_by_naming_those_there_are() -> None:
    with pytest.raises(PoseAugError) as caught:
        find_skeleton("h36m")
    assert "'h36m'" in str(caught.value)
    assert all(name in str(caught.value) for name in SKELETONS)


# -- a skeleton of one's own -----------------------------------------------------------------------


def own(**changes: object) -> Skeleton:
    return Skeleton(**{"name": "own", "parents": PARENTS, "parts": PARTS} | changes)


def test_a_skeleton_of_ones_own() -> None:
    skeleton = own()
    assert skeleton.root == 1
    assert skeleton.bone_children == (0, 2, 3, 4, 5, 6)
    assert skeleton.bone_parents == (3, 1, 2, 2, 4, 2)
    assert skeleton.flip_permutation == (5, 1, 2, 4, 3, 0, 6)
    assert skeleton.bone_length_groups == (0, 1, 2, 2, 0, 3)
    assert skeleton.bones_to_root(0) == (0, 2, 1)
    assert dict(skeleton.part_bones) == {
        "left": (0, 1, 2),  # the hand, the arm, and the chest that it hangs from
        "right": (1, 3, 4),
        "torso": (1, 2, 3, 5),  # all but the hands
    }


def test_limbs_at_the_root_are_judged_against_the_other_bones_there() -> None:
    for leg in ("left_leg", "right_leg"):
        children = {H36M_16.bone_children[b] for b in dict(H36M_16.part_bones)[leg]}
        at_root = {j for j, parent in enumerate(H36M_16.parent_indices) if parent == H36M_16.root}
        assert at_root <= children


def test_pairs_can_be_given() -> None:
    names = {"left_arm": "la", "left_hand": "lh", "right_arm": "ra", "right_hand": "rh"}
    parents = {names.get(j, j): p and names.get(p, p) for j, p in PARENTS.items()}
    parts = {part: [names.get(j, j) for j in js] for part, js in PARTS.items()}
    skeleton = own(parents=parents, parts=parts, pairs=[("la", "ra"), ("lh", "rh")])
    assert skeleton.flip_permutation == own().flip_permutation
    assert skeleton.bone_length_groups == own().bone_length_groups


def test_empty_pairs_tie_nothing() -> None:
    skeleton = own(pairs=[])
    assert skeleton.flip_permutation == tuple(range(7))
    assert skeleton.num_bone_length_groups == skeleton.num_bones


WITHOUT_LEFT_HAND = {j: p for j, p in PARENTS.items() if j != "left_hand"}
PARTS_WITHOUT_LEFT_HAND = PARTS | {"left": ("left_arm",)}

WRONG = {
    "cycle": (
        {"parents": PARENTS | {"left_arm": "left_hand"}},
        ["cycle", "left_hand -> left_arm -> left_hand"],
    ),
    "its own parent": ({"parents": PARENTS | {"head": "head"}}, ["cycle", "head -> head"]),
    "two roots": (
        {"parents": PARENTS | {"chest": None}},
        ["exactly one", "root", "'hip'", "'chest'"],
    ),
    "no root": ({"parents": PARENTS | {"hip": "chest"}}, ["exactly one", "root", "none"]),
    "no joints": ({"parents": {}, "parts": {}}, ["exactly one", "root", "none"]),
    "one joint": ({"parents": {"hip": None}, "parts": {"torso": ["hip"]}}, ["at least two joints"]),
    "unknown parent": (
        {"parents": PARENTS | {"head": "neck"}},
        ["the parent of 'head'", "'neck'", "not joints", "chest"],
    ),
    "unpaired left": (
        {"parents": WITHOUT_LEFT_HAND, "parts": PARTS_WITHOUT_LEFT_HAND},
        ["'right_hand'", "other side", "pairs="],
    ),
    "joint in no part": (
        {"parts": PARTS | {"torso": ("hip", "chest")}},
        ["exactly one part", "in none: ['head']"],
    ),
    "joint in two parts": (
        {"parts": PARTS | {"neck": ("head",)}},
        ["exactly one part", "in two: ['head']"],
    ),
    "joint twice in a part": (
        {"parts": PARTS | {"torso": ("hip", "chest", "head", "head")}},
        ["exactly one part", "in two: ['head']"],
    ),
    "empty part": ({"parts": PARTS | {"tail": ()}}, ["exactly one part", "empty parts: ['tail']"]),
    "unknown joint in a part": (
        {"parts": PARTS | {"torso": ("hip", "chest", "head", "neck")}},
        ["part 'torso'", "'neck'", "not joints"],
    ),
    "disconnected part": (
        {"parts": PARTS | {"torso": ("hip", "chest"), "left": ("left_arm", "left_hand", "head")}},
        ["part 'left'", "connected", "'head'", "'chest'"],
    ),
    "part listed inwards": (
        {"parts": PARTS | {"left": ("left_hand", "left_arm")}},
        ["part 'left'", "root outwards", "'left_arm'", "'chest'"],
    ),
    "torso not from the root": (
        {"parts": PARTS | {"torso": ("chest", "hip", "head")}},
        ["part 'torso'", "root outwards", "'hip'", "'nothing'"],
    ),
    "joint in two pairs": (
        {"pairs": [("left_arm", "right_arm"), ("left_arm", "right_hand")]},
        ["'left_arm'", "two left/right pairs"],
    ),
    "joint paired with itself": ({"pairs": [("head", "head")]}, ["'head'", "left/right pairs"]),
    "unknown joint in a pair": (
        {"pairs": [("left_arm", "right_foot")]},
        ["left/right pair", "'right_foot'", "not joints"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_skeleton_is_refused(case: str) -> None:
    changes, words = WRONG[case]
    with pytest.raises(PoseAugError) as caught:
        own(**changes)
    message = str(caught.value)
    assert message.startswith("Skeleton 'own': ")
    assert [word for word in words if word not in message] == []


# -- as a value ------------------------------------------------------------------------------------


@each_preset
def test_skeletons_survive_pickling_and_copying(skeleton: Skeleton) -> None:
    used = skeleton.bone_length_groups  # cached, so that a copy with a cache is tried too
    for twin in (pickle.loads(pickle.dumps(skeleton)), copy.deepcopy(skeleton)):
        assert twin == skeleton
        assert hash(twin) == hash(skeleton)
        assert twin.bone_length_groups == used


@each_preset
def test_skeletons_survive_a_checkpoint(skeleton: Skeleton) -> None:
    assert Skeleton(**skeleton.as_data()) == skeleton


def test_equal_definitions_are_equal_and_hash_alike() -> None:
    assert own() == own()
    assert len({own(), own()}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"parents": PARENTS | {"head": "hip"}},
        {"parts": PARTS | {"torso": ("hip", "chest"), "top": ("head",)}},
        {"pairs": []},
        {"parents": dict(sorted(PARENTS.items()))},
    ],
    ids=["name", "tree", "parts", "pairs", "order"],
)
def test_different_definitions_differ(changes: dict[str, object]) -> None:
    assert own(**changes) != own()


def test_presets_all_differ() -> None:
    assert len(set(SKELETONS.values())) == len(SKELETONS)


def test_skeletons_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        H36M_16.name = "other"


def test_a_later_change_of_the_arguments_does_not_matter() -> None:
    parents, parts = dict(PARENTS), {name: list(joints) for name, joints in PARTS.items()}
    skeleton = own(parents=parents, parts=parts)
    parents.clear()
    parts["torso"].clear()
    assert skeleton == own()


def test_repr_names_skeleton_and_size() -> None:
    assert repr(own()) == "Skeleton('own', 7 joints)"

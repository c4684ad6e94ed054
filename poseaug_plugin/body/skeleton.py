"""A skeleton as data: joints, parents, left/right pairs, named parts. The rest is derived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import PoseAugError

Parts = tuple[tuple[str, tuple[int, ...]], ...]  # by name, joints or bones


@dataclass(frozen=True, init=False, repr=False)
class Skeleton:
    """A rooted tree of joints.

    Bone ``i`` belongs to the ``i``-th joint that is not the root and points, as in the reference
    code, from that joint to its parent (``bone = parent - child``).

    Attributes derived from the arguments: ``joints``, ``root`` (its index), ``num_joints``,
    ``num_bones`` and the tuples below.

    Args:
        name: What messages call it.
        parents: Joint name to parent name, in joint order; the root's parent is ``None``.
        parts: Part name to the joints in it, root outwards. The part that holds the root is the
            torso, every other part is a limb (arm, leg). Every joint is in exactly one part.
        pairs: ``(left, right)`` joint names. By default every ``left_x`` pairs with ``right_x``.

    Raises `PoseAugError` for a cycle, several roots, unknown names, an unpaired ``left_`` or
    ``right_`` joint, a joint in no part or in two, a part that is not connected.

    Example:
        >>> from poseaug_plugin.body.presets import H36M_16
        >>> H36M_16.joints[:3], H36M_16.num_bones
        (('hip', 'right_hip', 'right_knee'), 15)
        >>> H36M_16.bone_length_groups
        (0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8)
    """

    name: str
    joints: tuple[str, ...]
    parent_indices: tuple[int, ...]
    part_joints: Parts
    pair_indices: tuple[tuple[int, int], ...]
    root: int
    num_joints: int
    num_bones: int

    def __init__(
        self,
        name: str,
        parents: Mapping[str, str | None],
        parts: Mapping[str, Iterable[str]],
        pairs: Iterable[tuple[str, str]] | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise PoseAugError(f"Skeleton: name must be text, got {name!r}.")
        joints = tuple(parents)

        def indices(names: Iterable[str], where: str) -> tuple[int, ...]:
            names = tuple(names)
            unknown = [n for n in names if n not in parents]
            if unknown:
                raise PoseAugError(
                    f"Skeleton {name!r}: {where} names {unknown}, which are not joints. "
                    f"Joints: {', '.join(joints)}."
                )
            return tuple(joints.index(n) for n in names)

        parent_indices = tuple(
            -1 if parent is None else indices([parent], f"the parent of {joint!r}")[0]
            for joint, parent in parents.items()
        )
        _check_tree(name, joints, parent_indices)
        part_joints = tuple((part, indices(js, f"part {part!r}")) for part, js in parts.items())
        _check_parts(name, joints, parent_indices, part_joints)
        named = _pairs_by_name(name, joints) if pairs is None else pairs
        pair_indices = tuple(indices(pair, "a left/right pair") for pair in named)
        paired = [j for pair in pair_indices for j in pair]
        if len(set(paired)) != len(paired):
            twice = sorted({joints[j] for j in paired if paired.count(j) > 1})
            raise PoseAugError(f"Skeleton {name!r}: {twice} stand in two left/right pairs.")
        self.__dict__.update(  # the class is frozen
            name=name,
            joints=joints,
            parent_indices=parent_indices,
            part_joints=part_joints,
            pair_indices=pair_indices,
            root=parent_indices.index(-1),
            num_joints=len(joints),
            num_bones=len(joints) - 1,
        )

    def as_data(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, for a checkpoint."""
        names, parents = self.joints, self.parent_indices
        return {
            "name": self.name,
            "parents": {names[j]: None if p < 0 else names[p] for j, p in enumerate(parents)},
            "parts": {part: [names[j] for j in js] for part, js in self.part_joints},
            "pairs": [(names[left], names[right]) for left, right in self.pair_indices],
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Skeleton:
        """Inverse of `as_data`."""
        return cls(**data)

    def __repr__(self) -> str:
        return f"Skeleton({self.name!r}, {self.num_joints} joints)"

    @cached_property
    def bone_children(self) -> tuple[int, ...]:
        """The child joint of every bone, in joint order."""
        return tuple(j for j in range(self.num_joints) if j != self.root)

    @cached_property
    def bone_parents(self) -> tuple[int, ...]:
        """The parent joint of every bone."""
        return tuple(self.parent_indices[j] for j in self.bone_children)

    def bones_to_root(self, joint: int) -> tuple[int, ...]:
        """The bones between a joint and the root, the joint's own first."""
        path = []
        while joint != self.root:
            path.append(self.bone_children.index(joint))
            joint = self.parent_indices[joint]
        return tuple(path)

    @cached_property
    def flip_permutation(self) -> tuple[int, ...]:
        """``joints[..., flip_permutation, :]`` swaps the left and right joints."""
        mirror = dict(self.pair_indices) | {right: left for left, right in self.pair_indices}
        return tuple(mirror.get(j, j) for j in range(self.num_joints))

    @cached_property
    def bone_length_groups(self) -> tuple[int, ...]:
        """Group of every bone; left and right bones share one (the reference's nine groups)."""
        firsts = [min(child, self.flip_permutation[child]) for child in self.bone_children]
        groups = list(dict.fromkeys(firsts))
        return tuple(groups.index(first) for first in firsts)

    @property
    def num_bone_length_groups(self) -> int:
        """How many independent bone lengths a symmetric body has."""
        return max(self.bone_length_groups) + 1

    @cached_property
    def limbs(self) -> Parts:
        """The parts without the root: name and joints, root outwards."""
        return tuple((n, js) for n, js in self.part_joints if self.root not in js)

    def attachment(self, limb: tuple[int, ...]) -> int:
        """The torso joint that a limb hangs from."""
        return self.parent_indices[limb[0]]

    @cached_property
    def part_bones(self) -> Parts:
        """The bones that each part's critic sees (PoseAug section 3.3, released ``kcs_layer_*``).

        A limb is judged together with what it is articulated against: the bone that its attachment
        joint hangs from or, where it is attached to the root, the other bones at the root. The
        torso is every other bone, and the first bone of each limb.
        """
        parts: dict[str, tuple[int, ...]] = {}
        distal: set[int] = set()
        for name, joints in self.limbs:
            chain = [self.bone_children.index(j) for j in joints]
            distal |= set(chain[1:])
            anchor = self.bones_to_root(self.attachment(joints))[:1]
            anchor = anchor or tuple(b for b, p in enumerate(self.bone_parents) if p == self.root)
            parts[name] = tuple(sorted({*chain, *anchor}))
        torso = tuple(b for b in range(self.num_bones) if b not in distal)
        torso_name = next(n for n, js in self.part_joints if self.root in js)
        return (*parts.items(), (torso_name, torso))


def _check_tree(name: str, joints: tuple[str, ...], parents: tuple[int, ...]) -> None:
    roots = [joint for joint, parent in zip(joints, parents, strict=True) if parent < 0]
    if len(roots) != 1:
        raise PoseAugError(
            f"Skeleton {name!r}: exactly one joint must have no parent (the root), got "
            f"{roots or 'none'}."
        )
    if len(joints) < 2:
        raise PoseAugError(f"Skeleton {name!r}: at least two joints are needed, got {roots}.")
    for start in range(len(joints)):
        seen = [start]
        while parents[seen[-1]] != -1:
            seen.append(parents[seen[-1]])
            if seen[-1] in seen[:-1]:
                cycle = " -> ".join(joints[j] for j in seen)
                raise PoseAugError(f"Skeleton {name!r}: the parents form a cycle: {cycle}.")


def _check_parts(
    name: str, joints: tuple[str, ...], parents: tuple[int, ...], parts: Parts
) -> None:
    listed = [j for _, part in parts for j in part]
    missing = [joints[j] for j in range(len(joints)) if j not in listed]
    twice = sorted({joints[j] for j in listed if listed.count(j) > 1})
    empty = [part for part, js in parts if not js]
    if missing or twice or empty:
        raise PoseAugError(
            f"Skeleton {name!r}: every joint must be in exactly one part; in none: "
            f"{missing or '-'}, in two: {twice or '-'}, empty parts: {empty or '-'}."
        )
    for part, members in parts:
        for position, joint in enumerate(members):
            if (parents[joint] in members[:position]) != (position > 0):
                raise PoseAugError(
                    f"Skeleton {name!r}: part {part!r} must be connected and listed from the root "
                    f"outwards; {joints[joint]!r} comes at place {position + 1} but hangs from "
                    f"{joints[parents[joint]] if parents[joint] >= 0 else 'nothing'!r}."
                )


def _pairs_by_name(name: str, joints: tuple[str, ...]) -> list[tuple[str, str]]:
    lefts = [j.removeprefix("left_") for j in joints if j.startswith("left_")]
    rights = [j.removeprefix("right_") for j in joints if j.startswith("right_")]
    unpaired = [f"left_{j}" for j in lefts if j not in rights]
    unpaired += [f"right_{j}" for j in rights if j not in lefts]
    if unpaired:
        raise PoseAugError(
            f"Skeleton {name!r}: {unpaired} have no joint on the other side; rename them or pass "
            "pairs=[(left, right), ...]."
        )
    return [(f"left_{j}", f"right_{j}") for j in lefts]

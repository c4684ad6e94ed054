"""A skeleton as data: joints, parents, left/right pairs, named parts. The rest is derived."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .errors import PoseAugError


@dataclass(frozen=True, eq=True)
class Skeleton:
    """A rooted tree of joints.

    Bone ``i`` belongs to the ``i``-th joint that is not the root and points, as in the reference
    code, from that joint to its parent (``bone = parent - child``).

    Args:
        name: What messages call it.
        parents: Joint name to parent name, in joint order; the root's parent is ``None``.
        parts: Part name to the joints in it, root outwards. The part that holds the root is the
            torso, every other part is a limb (arm, leg). Every joint is in exactly one part.
        pairs: ``(left, right)`` joint names. By default every ``left_x`` pairs with ``right_x``.

    Raises:
        PoseAugError: A cycle, no or several roots, an unknown name, an unpaired ``left_`` or
            ``right_`` joint, a joint in no part or in two, a part that is not connected.

    Example:
        >>> from poseaug_plugin import H36M_16
        >>> H36M_16.joints[:3], H36M_16.num_bones
        (('hip', 'right_hip', 'right_knee'), 15)
        >>> H36M_16.bone_length_groups
        (0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8)
    """

    name: str
    joints: tuple[str, ...] = field(init=False)
    parent_indices: tuple[int, ...] = field(init=False)
    part_joints: tuple[tuple[str, tuple[int, ...]], ...] = field(init=False)
    pair_indices: tuple[tuple[int, int], ...] = field(init=False)

    def __init__(
        self,
        name: str,
        parents: Mapping[str, str | None],
        parts: Mapping[str, Iterable[str]],
        pairs: Iterable[tuple[str, str]] | None = None,
    ) -> None:
        joints = tuple(parents)
        index = {joint: i for i, joint in enumerate(joints)}

        def indices(names: Iterable[str], where: str) -> tuple[int, ...]:
            names = tuple(names)
            unknown = [n for n in names if n not in index]
            if unknown:
                raise PoseAugError(
                    f"Skeleton {name!r}: {where} names {unknown}, which are not joints. "
                    f"Joints: {', '.join(joints)}."
                )
            return tuple(index[n] for n in names)

        _check_one_root(name, parents)
        parent_indices = tuple(
            -1 if parent is None else indices([parent], f"the parent of {joint!r}")[0]
            for joint, parent in parents.items()
        )
        _check_no_cycle(name, joints, parent_indices)
        part_joints = tuple((part, indices(js, f"part {part!r}")) for part, js in parts.items())
        _check_partition(name, joints, part_joints)
        _check_parts_are_connected(name, joints, parent_indices, part_joints)
        if pairs is None:
            pairs = _pairs_by_name(name, joints)
        pair_indices = []
        for pair in pairs:
            left, right = indices(pair, "a left/right pair")
            pair_indices.append((left, right))
        paired = [j for pair in pair_indices for j in pair]
        if len(set(paired)) != len(paired):
            twice = sorted({joints[j] for j in paired if paired.count(j) > 1})
            raise PoseAugError(f"Skeleton {name!r}: {twice} stand in two left/right pairs.")

        for attribute, value in (
            ("name", name),
            ("joints", joints),
            ("parent_indices", parent_indices),
            ("part_joints", part_joints),
            ("pair_indices", tuple(pair_indices)),
        ):
            object.__setattr__(self, attribute, value)

    def as_data(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, for a checkpoint."""
        return {
            "name": self.name,
            "parents": {
                joint: None if parent < 0 else self.joints[parent]
                for joint, parent in zip(self.joints, self.parent_indices, strict=True)
            },
            "parts": {name: [self.joints[j] for j in js] for name, js in self.part_joints},
            "pairs": [(self.joints[left], self.joints[right]) for left, right in self.pair_indices],
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Skeleton:
        """Inverse of `as_data`."""
        return cls(**data)

    def __repr__(self) -> str:
        return f"Skeleton({self.name!r}, {self.num_joints} joints)"

    # -- tree ------------------------------------------------------------------------------------

    @property
    def num_joints(self) -> int:
        """Number of joints, J."""
        return len(self.joints)

    @property
    def num_bones(self) -> int:
        """Number of bones, J - 1."""
        return len(self.joints) - 1

    @property
    def root(self) -> int:
        """Index of the root joint."""
        return self.parent_indices.index(-1)

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

    # -- left and right --------------------------------------------------------------------------

    @cached_property
    def flip_permutation(self) -> tuple[int, ...]:
        """``joints[..., flip_permutation, :]`` swaps the left and right joints."""
        mirror = {
            a: b for left, right in self.pair_indices for a, b in ((left, right), (right, left))
        }
        return tuple(mirror.get(j, j) for j in range(self.num_joints))

    @cached_property
    def bone_length_groups(self) -> tuple[int, ...]:
        """Group of every bone; left and right bones share one (the reference's nine groups)."""
        group_of_child: dict[int, int] = {}
        for child in self.bone_children:
            mirrored = self.flip_permutation[child]
            group_of_child[child] = group_of_child.get(mirrored, len(set(group_of_child.values())))
        return tuple(group_of_child[child] for child in self.bone_children)

    @property
    def num_bone_length_groups(self) -> int:
        """How many independent bone lengths a symmetric body has."""
        return max(self.bone_length_groups) + 1

    # -- parts -----------------------------------------------------------------------------------

    @cached_property
    def limbs(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The parts without the root: name and joints, root outwards."""
        return tuple((n, js) for n, js in self.part_joints if self.root not in js)

    def _attachment(self, limb: tuple[int, ...]) -> int:
        """The torso joint that a limb hangs from."""
        return self.parent_indices[limb[0]]

    @cached_property
    def part_bones(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The bones that each part's critic sees (PoseAug section 3.3, released ``kcs_layer_*``).

        A limb is judged together with what it is articulated against: the bone that its attachment
        joint hangs from or, where it is attached to the root, the other bones at the root. The
        torso is every other bone, and the first bone of each limb.
        """
        parts: dict[str, tuple[int, ...]] = {}
        distal: set[int] = set()
        for name, joints in self.limbs:
            chain = {self.bone_children.index(j) for j in joints}
            distal |= chain - {self.bone_children.index(joints[0])}
            attachment = self._attachment(joints)
            if attachment == self.root:
                anchor = {b for b, p in enumerate(self.bone_parents) if p == self.root}
            else:
                anchor = {self.bone_children.index(attachment)}
            parts[name] = tuple(sorted(chain | anchor))
        torso = tuple(b for b in range(self.num_bones) if b not in distal)
        torso_name = next(n for n, js in self.part_joints if self.root in js)
        return (*parts.items(), (torso_name, torso))

    @cached_property
    def trunk_bones(self) -> tuple[int, ...]:
        """Bones between the root and the limbs' attachments (rigid in the released code)."""
        return tuple(
            sorted({b for _, js in self.limbs for b in self.bones_to_root(self._attachment(js))})
        )

    @cached_property
    def anchor_length_group(self) -> int | None:
        """The length group that sets the scale (never changed by the released code), if any.

        The outermost trunk bone that carries the most limbs: a person twice as tall, twice as far
        away, gives the same picture, so one length has to stay.
        """
        if not self.trunk_bones:
            return None
        paths = [self.bones_to_root(self._attachment(js)) for _, js in self.limbs]
        bone = max(
            self.trunk_bones,
            key=lambda b: (
                sum(b in p for p in paths),
                len(self.bones_to_root(self.bone_children[b])),
            ),
        )
        return self.bone_length_groups[bone]

    @cached_property
    def joint_weights(self) -> tuple[float, ...]:
        """Weights of the released feedback error: 5, 2, 1, 1 ... outwards on limbs, 1 elsewhere."""
        weights = [1.0] * self.num_joints
        for _, joints in self.limbs:
            for joint, weight in zip(joints, (5.0, 2.0), strict=False):
                weights[joint] = weight
        return tuple(weights)

    @cached_property
    def error_groups(self) -> tuple[tuple[int, ...], ...]:
        """Proximal, middle and distal joints of the released feedback error, without the trunk."""
        limb_joints = {j for _, js in self.limbs for j in js}
        trunk = {self.root} | {self.bone_children[b] for b in self.trunk_bones}
        proximal = {js[0] for _, js in self.limbs}
        distal = {j for _, js in self.limbs for j in js[2:]}
        middle = {js[1] for _, js in self.limbs if len(js) > 1}
        middle |= set(range(self.num_joints)) - limb_joints - trunk  # head and neck
        return tuple(tuple(sorted(group)) for group in (proximal, middle, distal) if group)


def _check_one_root(name: str, parents: Mapping[str, str | None]) -> None:
    roots = [joint for joint, parent in parents.items() if parent is None]
    if len(roots) != 1:
        raise PoseAugError(
            f"Skeleton {name!r}: exactly one joint must have no parent (the root), got "
            f"{roots or 'none'}."
        )
    if len(parents) < 2:
        raise PoseAugError(f"Skeleton {name!r}: at least two joints are needed, got {roots}.")


def _check_no_cycle(name: str, joints: tuple[str, ...], parents: tuple[int, ...]) -> None:
    for start in range(len(joints)):
        seen = [start]
        while parents[seen[-1]] != -1:
            seen.append(parents[seen[-1]])
            if seen[-1] in seen[:-1]:
                raise PoseAugError(
                    f"Skeleton {name!r}: the parents form a cycle: "
                    f"{' -> '.join(joints[j] for j in seen)}."
                )


def _check_partition(
    name: str, joints: tuple[str, ...], parts: tuple[tuple[str, tuple[int, ...]], ...]
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


def _check_parts_are_connected(
    name: str,
    joints: tuple[str, ...],
    parents: tuple[int, ...],
    parts: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:
    for part, members in parts:
        for position, joint in enumerate(members):
            before = members[:position]
            attached_inside = parents[joint] in before
            if attached_inside != (position > 0):
                raise PoseAugError(
                    f"Skeleton {name!r}: part {part!r} must be connected and listed from the root "
                    f"outwards; {joints[joint]!r} comes at place {position + 1} but hangs from "
                    f"{joints[parents[joint]] if parents[joint] >= 0 else 'nothing'!r}."
                )


def _pairs_by_name(name: str, joints: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs, unpaired = [], []
    for joint in joints:
        side, _, rest = joint.partition("_")
        if side not in ("left", "right"):
            continue
        mirrored = f"{'right' if side == 'left' else 'left'}_{rest}"
        if mirrored not in joints:
            unpaired.append(joint)
        elif side == "left":
            pairs.append((joint, mirrored))
    if unpaired:
        raise PoseAugError(
            f"Skeleton {name!r}: {unpaired} have no joint on the other side; rename them or pass "
            "pairs=[(left, right), ...]."
        )
    return pairs

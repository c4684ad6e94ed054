"""A skeleton as data: joints, parents, left/right pairs, named parts. The rest is derived."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    Args:
        name: What messages call it.
        parents: Joint name to parent name, in joint order; the root's parent is ``None``.
        parts: Part name to the joints in it, root outwards. The part that holds the root is the
            torso, every other part is a limb (arm, leg). Every joint is in exactly one part.
        pairs: ``(left, right)`` joint names. By default every ``left_x`` pairs with ``right_x``.

    Raises `PoseAugError` for a cycle, several roots, unknown names, an unpaired ``left_`` or
    ``right_`` joint, a joint in no part or in two, a part that is not connected.

    Examples:
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
        joints, members = tuple(parents), {part: tuple(names) for part, names in parts.items()}
        given = None if pairs is None else [tuple(pair) for pair in pairs]
        for problem in _problems(parents, members, given):
            raise PoseAugError(f"Skeleton {name!r}: {problem}.")
        by_name = [(j, _mirrored(j)) for j in joints if j.startswith("left_")]

        def indices(names: Iterable[str]) -> tuple[int, ...]:
            return tuple(joints.index(n) for n in names)

        self.__dict__.update(  # the class is frozen
            name=name,
            joints=joints,
            parent_indices=tuple(-1 if p is None else joints.index(p) for p in parents.values()),
            part_joints=tuple((part, indices(names)) for part, names in members.items()),
            pair_indices=tuple(map(indices, by_name if given is None else given)),
            root=list(parents.values()).index(None),
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

    @cached_property
    def part_bones(self) -> Parts:
        """The bones that each part's critic sees (PoseAug section 3.3, released ``kcs_layer_*``).

        A limb is judged with what it hangs from: a bone or, at the root, the other bones there. The
        torso is every other bone, and the first of each limb.
        """
        parts: dict[str, tuple[int, ...]] = {}
        distal: set[int] = set()
        for name, joints in self.limbs:
            chain = [self.bone_children.index(j) for j in joints]
            distal |= set(chain[1:])
            anchor = self.bones_to_root(self.parent_indices[joints[0]])[:1]
            anchor = anchor or tuple(b for b, p in enumerate(self.bone_parents) if p == self.root)
            parts[name] = tuple(sorted({*chain, *anchor}))
        torso = tuple(b for b in range(self.num_bones) if b not in distal)
        torso_name = next(n for n, js in self.part_joints if self.root in js)
        return (*parts.items(), (torso_name, torso))


def _mirrored(joint: str) -> str:
    """The name of the joint on the other side; its own in the middle."""
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if joint.startswith(side):
            return other + joint.removeprefix(side)
    return joint


def _problems(
    parents: Mapping[str, str | None],
    parts: Mapping[str, tuple[str, ...]],
    pairs: Sequence[tuple[str, ...]] | None,
) -> Iterator[str]:
    """What keeps this from being a skeleton; each check counts on those before it."""
    uses: list[tuple[str, tuple[str, ...]]]
    uses = [(f"the parent of {j!r}", (p,)) for j, p in parents.items() if p is not None]
    uses += [(f"part {part!r}", names) for part, names in parts.items()]
    uses += [("a left/right pair", pair) for pair in pairs or ()]
    for where, names in uses:
        unknown = [n for n in names if n not in parents]
        if unknown:
            yield f"{where} names {unknown}, which are not joints. Joints: {', '.join(parents)}"
    roots = [joint for joint, parent in parents.items() if parent is None]
    if len(roots) != 1:
        yield f"exactly one joint must have no parent (the root), got {roots or 'none'}"
    if len(parents) < 2:
        yield f"at least two joints are needed, got {roots}"
    for joint in parents:
        path = [joint]
        while (parent := parents[path[-1]]) is not None:
            path.append(parent)
            if parent in path[:-1]:
                yield f"the parents form a cycle: {' -> '.join(path)}"
    listed = [joint for names in parts.values() for joint in names]
    missing = [joint for joint in parents if joint not in listed]
    twice = sorted({joint for joint in listed if listed.count(joint) > 1})
    empty = [part for part, names in parts.items() if not names]
    if missing or twice or empty:
        yield (
            f"every joint must be in exactly one part; in none: {missing or '-'}, in two: "
            f"{twice or '-'}, empty parts: {empty or '-'}"
        )
    for part, names in parts.items():
        for position, joint in enumerate(names):
            if (parents[joint] in names[:position]) != (position > 0):
                yield (
                    f"part {part!r} must be connected and listed from the root outwards; {joint!r} "
                    f"comes at place {position + 1} but hangs from {parents[joint] or 'nothing'!r}"
                )
    one_sided = [joint for joint in parents if _mirrored(joint) not in parents]
    if one_sided and pairs is None:
        yield (
            f"{one_sided} have no joint on the other side; rename them or pass "
            "pairs=[(left, right), ...]"
        )
    paired = [joint for pair in pairs or () for joint in pair]
    twice = sorted({joint for joint in paired if paired.count(joint) > 1})
    if twice:
        yield f"{twice} stand in two left/right pairs"

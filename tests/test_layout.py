"""The package's shape: small, imports that point one way, few dependencies, no sync in a step."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from benchmarks.count_module_changes import count
from loops import (
    HOOKS,
    UPDATES,
    NoSync,
    adam,
    augmented,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
    train,
)

import poseaug_plugin
from poseaug_plugin.host import attachment

PACKAGE = Path(poseaug_plugin.__file__).parent
TESTS = Path(__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
SOURCES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
MODULES = [name for name in FILES if not name.endswith("__init__")]

# The floors of the house. A module imports from floors below its own, and from rows of its own
# package that stand before its own.
FLOORS: tuple[dict[str, tuple[tuple[str, ...], ...]], ...] = (
    {"errors": ()},
    {"body": (("rotation", "skeleton"), ("bones", "camera", "presets"), ("poses",)), "metrics": ()},
    {"runtime": (("checkpoint", "distributed", "isolation", "monitor", "optimizer", "recorder"),)},
    {"augment": (("transforms",), ("augmenter", "policy"))},
    {
        "adversary": (("critics", "pool"),),
        "feedback": (("controller", "observer", "target"),),
        "host": (("adapter", "attachment"), ("checks", "sequences")),
    },
    {"options": ()},
    {"reference": (("regressors",), ("recipes",)), "trainer": ()},
    {"hook": ()},
    {"__init__": ()},
)
PLACES: dict[str, tuple[int, int]] = {}  # floor, and row in the package
for _floor, _parts in enumerate(FLOORS):
    for _part, _rows in _parts.items():
        PLACES |= {_part: (_floor, 0)} if not _rows else {f"{_part}.__init__": (_floor, -1)}
        for _row, _names in enumerate(_rows):
            PLACES |= {f"{_part}.{_name}": (_floor, _row) for _name in _names}

# Leaves do not know what learns.
LEAVES = {
    "errors": set(),
    "adversary.pool": set(),
    "feedback.observer": set(),
    "runtime.isolation": set(),
    "runtime.optimizer": set(),
    "runtime.distributed": {"errors"},
    "runtime.monitor": {"errors"},
    "runtime.recorder": {"errors"},
    "runtime.checkpoint": {"errors", "body.skeleton"},
    "host.attachment": {"errors"},
    "metrics": {"errors"},
    "body.skeleton": {"errors"},
    "body.presets": {"errors", "body.skeleton"},
}


def own_imports(name: str) -> Iterator[str]:
    """Modules of the package that a module imports, wherever it does so."""
    package = name.split(".")[:-1]
    for node in ast.walk(SOURCES[name]):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        above = package[: len(package) - node.level + 1]
        base = [*above, *(node.module.split(".") if node.module else [])]
        module = ".".join(base)
        if module in FILES:
            yield module
        else:  # from .package import module
            yield from (".".join([*base, alias.name]) for alias in node.names)


def foreign_imports(name: str) -> Iterator[str]:
    """Packages of others that a module imports."""
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def part_of(name: str) -> str:
    """The package or module of the top that a module belongs to."""
    return name.split(".")[0]


SIBLINGS = {name: set(own_imports(name)) for name in FILES}
each_file = pytest.mark.parametrize("name", FILES)


@each_file
def test_module_has_its_place(name: str) -> None:
    assert name in PLACES


def test_no_place_is_of_what_is_not_there() -> None:
    assert set(PLACES) == set(FILES)


@each_file
def test_imports_are_of_what_is_there(name: str) -> None:
    assert set(FILES) >= SIBLINGS[name]
    assert "poseaug_plugin" not in set(foreign_imports(name))


@each_file
def test_imports_point_one_way(name: str) -> None:
    floor, row = PLACES[name]
    for other in SIBLINGS[name]:
        floor_of_other, row_of_other = PLACES[other]
        if part_of(other) == part_of(name):
            assert row_of_other < row, other
        else:
            assert floor_of_other < floor, other


def test_no_chain_of_imports_is_long() -> None:
    """Counted over modules, those that hold the docstring of a package aside."""

    @cache
    def height(name: str) -> int:
        return 1 + max(map(height, SIBLINGS[name]), default=0)

    assert height("__init__") == max(map(height, FILES))
    assert height("__init__") <= 9


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_knows_little(name: str) -> None:
    assert SIBLINGS[name] <= LEAVES[name]


def test_nothing_imports_the_hook() -> None:
    assert {name for name in FILES if "hook" in SIBLINGS[name]} == {"__init__"}


def test_only_the_hook_knows_what_was_published() -> None:
    knowing = {
        part_of(name)
        for name in FILES
        if any(part_of(other) == "reference" for other in SIBLINGS[name])
    }
    assert knowing == {"reference", "hook"}


def test_the_geometry_knows_nothing_of_networks() -> None:
    for name in MODULES:
        if part_of(name) == "body":
            assert {part_of(other) for other in SIBLINGS[name]} <= {"body", "errors"}


@each_file
def test_few_dependencies(name: str) -> None:
    allowed = {"torch", "numpy", "einops", "typing_extensions", *sys.stdlib_module_names}
    assert set(foreign_imports(name)) <= allowed


def test_every_dependency_is_used() -> None:
    used = {foreign for name in FILES for foreign in foreign_imports(name)}
    assert {"torch", "numpy", "einops", "typing_extensions"} <= used


def test_oldest_versions_that_were_tested_are_the_oldest_allowed() -> None:
    project = PACKAGE.parent / "pyproject.toml"
    allowed = re.search(r"^dependencies = .*$", project.read_text(), re.MULTILINE)
    oldest = (TESTS / "constraints-lowest.txt").read_text()
    assert allowed
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)"', allowed.group())
    assert {name for name, _ in bounds} == {"torch", "numpy", "einops", "typing-extensions"}
    for name, bound in bounds:
        assert re.search(rf"^{name}=={re.escape(bound)}(\.|$)", oldest, re.MULTILINE), name


# -- small -----------------------------------------------------------------------------------------


def test_packages_are_one_level_deep_and_their_heads_are_empty() -> None:
    assert all(name.count(".") <= 1 for name in FILES)
    heads = [name for name in FILES if name.endswith(".__init__")]
    assert {part_of(name) for name in FILES if "." in name} == {part_of(name) for name in heads}
    for name in heads:
        (docstring,) = SOURCES[name].body
        assert isinstance(docstring, ast.Expr)


def test_modules_are_few() -> None:
    assert len(MODULES) <= 32


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_package_has_a_budget_of_lines() -> None:
    assert sum(map(lines_of, FILES.values())) <= 5_200


@pytest.mark.parametrize("folder", [PACKAGE, TESTS], ids=lambda folder: folder.name)
def test_no_file_is_long(folder: Path) -> None:
    lines = {str(path.relative_to(folder)): lines_of(path) for path in folder.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > 600} == {}


def test_names_of_test_files_are_unique() -> None:
    # Their folders are no packages, so pytest knows them by these names alone.
    times = Counter(path.name for path in TESTS.rglob("*.py") if path.name != "__init__.py")
    assert [name for name, times in times.items() if times > 1] == []


def test_hook_has_few_options() -> None:
    signature = inspect.signature(poseaug_plugin.PoseAugHook).parameters
    beside = {"estimator", "optimizer", "skeleton", "adapter", "preset"}
    options = [option for name, option in signature.items() if name not in beside]
    assert len(options) == len(signature) - len(beside) <= 20
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    assert all(option.default is not inspect.Parameter.empty for option in options)


@pytest.fixture(scope="module")
def calls() -> Any:
    """The calls of one default step, by what makes them; hooks that others left do not count."""
    with mock.patch.object(attachment, "_watchers", ()):
        return count()


@pytest.mark.parametrize(("work", "most"), [("augment", 35), ("step", 80)])
def test_a_step_changes_module_seldom(work: str, most: int, calls: Any) -> None:
    assert len(calls[work].made) > 50
    assert calls[work].changes <= most


# -- public names ----------------------------------------------------------------------------------

PUBLIC = [
    *("SKELETONS", "Adapter", "AugmentationParameters", "AugmentationPolicy", "AugmentedPoses"),
    *("CanonicalPoses", "HostPoses", "KeypointCritic", "PartKCSCritic", "Policy", "PoseAdapter"),
    *("PoseAugError", "PoseAugHook", "PoseAugWarning", "PoseSource", "RandomPolicy", "Skeleton"),
    *("Spread", "apply_augmentation", "normalize_screen_coordinates", "project_points"),
    *("root_relative", "solve_root"),
]


def test_public_names() -> None:
    assert sorted(poseaug_plugin.__all__) == sorted(PUBLIC)
    assert len(PUBLIC) <= 24


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there(name: str) -> None:
    assert hasattr(poseaug_plugin, name)


def test_public_methods_of_the_hook() -> None:
    names = {name for name in dir(poseaug_plugin.PoseAugHook) if not name.startswith("_")}
    assert names == {
        *("augment", "observe", "step"),
        *("paused", "remove"),
        *("policy", "losses", "diagnostics", "check_batch"),
        *("state_dict", "load_state_dict"),
    }


# -- no device sync --------------------------------------------------------------------------------

# What reads values, or never sees a tensor of a step.
COLD_MODULES = {
    *("__init__", "errors", "metrics", "options", "body.skeleton", "body.presets"),
    *("host.attachment", "host.checks", "runtime.checkpoint"),
}
# What sits between training steps.
COLD = {
    *("state_dict", "load_state_dict", "get_extra_state", "set_extra_state", "__init__"),
    *("open", "check_batch", "diagnostics", "read", "skeleton_tables", "__str__"),
}
HOT = [name for name in MODULES if name not in COLD_MODULES]
SYNCS = {"item", "cpu", "numpy", "tolist", "nonzero", "argwhere", "masked_select", "unique"}


def hot_syncs(tree: ast.AST) -> Iterator[str]:
    """Line and name of every call outside the cold functions that waits for the device."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef) and child.name in COLD:
            continue
        if isinstance(child, ast.Call):
            called = getattr(child.func, "attr", getattr(child.func, "id", ""))
            if called in SYNCS or (called == "where" and len(child.args) == 1):
                yield f"line {child.lineno}: {called}"
        yield from hot_syncs(child)


def test_cold_modules_are_there() -> None:
    assert set(FILES) >= COLD_MODULES
    functions = {
        node.name
        for name in HOT
        for node in ast.walk(SOURCES[name])
        if isinstance(node, ast.FunctionDef)
    }
    assert functions >= COLD


@pytest.mark.parametrize("name", HOT)
def test_no_call_waits_for_the_device(name: str) -> None:
    assert list(hot_syncs(SOURCES[name])) == []


@pytest.mark.parametrize("line", ["x.item()", "x.cpu()", "y = f(x.tolist()) + 1", "torch.where(x)"])
def test_search_for_syncs_finds(line: str) -> None:
    tree = ast.parse(f"def step(x):\n    if x:\n        {line}\n")
    assert len(list(hot_syncs(tree))) == 1


@pytest.mark.parametrize(
    "sync",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: 1 if x.any() else 0,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    ],
)
def test_watch_for_syncs_sees(sync: Any) -> None:
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        sync(x)


# Dropout as found takes its seed from the stream, which is read; and answers about the target are
# looked at, as seldom as they are asked for.
WITHOUT_SYNC = [name for name in HOOKS if name not in ("released", "closed loop")]


def steps_without_sync(**options: Any) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, **options)
    train(hook, estimator, adam(estimator), stream(2))
    for seed in (5, 6):  # with critics and without
        batch = make_batch(seed=seed)
        with NoSync():
            inputs_2d, inputs_3d = augmented(hook, batch)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        with NoSync():
            hook.step()
    assert hook.diagnostics().updates == 4


@pytest.mark.parametrize("mix", ["replace", "append"])
@pytest.mark.parametrize("name", WITHOUT_SYNC)
def test_step_never_waits_for_the_device(name: str, mix: str) -> None:
    steps_without_sync(mix=mix, **HOOKS[name])


@pytest.mark.parametrize("name", UPDATES)
def test_no_kind_of_update_waits_for_the_device(name: str) -> None:
    steps_without_sync(**UPDATES[name])


@pytest.mark.filterwarnings("ignore:PoseAugHook. the first batch looks wrong")
@pytest.mark.parametrize("kind", ["zeroed", "one frame of more"])
def test_other_formats_never_wait_for_the_device(kind: str) -> None:
    estimator = make_lifter(frames=3)
    adapter = poseaug_plugin.PoseAdapter(root="zeroed" if kind == "zeroed" else "trajectory")
    hook = make_hook(estimator, adapter=adapter)
    camera, inputs_3d, inputs_2d = make_batch(frames=3)
    hook.augment(inputs_2d, inputs_3d, camera)
    with NoSync():
        hook.augment(inputs_2d, inputs_3d, camera)
        hook.observe(inputs_3d[:, 1:2].repeat(1, 1 if kind == "one frame of more" else 3, 1, 1))
        hook.step()
    assert hook.diagnostics().hardness_ratio > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("frames", [1, 3])
def test_step_never_waits_for_the_gpu(frames: int) -> None:
    estimator = make_lifter(frames=frames).cuda()
    hook = make_hook(estimator)
    for seed in range(4):  # the first makes what is made once
        camera, inputs_3d, inputs_2d = (t.cuda() for t in make_batch(seed=seed, frames=frames))
        torch.cuda.set_sync_debug_mode("error" if seed else "default")
        try:
            inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
            mpjpe(estimator(inputs_2d), inputs_3d).backward()
            hook.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert hook.diagnostics().updates == 4

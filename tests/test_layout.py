"""The package's shape: imports point one way, few dependencies, no device sync in a step."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import HOOKS, make_batch, make_hook, make_lifter, mpjpe, stream, train
from torch.utils._python_dispatch import TorchDispatchMode

import poseaug_plugin

PACKAGE = Path(poseaug_plugin.__file__).parent
FILES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
SOURCES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}

# A module imports from the rows above its own and from nothing else of the package.
ROWS = (
    ("errors",),
    ("skeleton",),
    ("skeletons",),
    ("bones", "rigid", "camera", "grouped", "curriculum", "pool"),
    ("windows",),
    ("augmentation", "placement", "regressors", "losses", "metrics", "anatomy"),
    ("policy", "discriminators", "hardness"),
    (
        "adapters",
        "isolation",
        "observation",
        "attachment",
        "execution",
        "guarded",
        "diagnostics",
        "config",
        "ranks",
        "mixing",
        "regressor_policy",
        "reminders",
    ),
    ("objectives", "checks", "checkpoint", "source"),
    ("generation", "critics"),
    ("estimator_error", "readings"),
    ("training",),
    ("hook",),
    ("__init__",),
)
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}

# Leaves do not know what learns.
LEAVES = {
    "errors": set(),
    "grouped": set(),
    "curriculum": set(),
    "pool": set(),
    "isolation": set(),
    "observation": set(),
    "execution": {"errors"},
    "guarded": set(),
    "ranks": set(),
    "reminders": {"errors"},
    "mixing": set(),
    "attachment": {"errors"},
    "diagnostics": {"errors"},
    "skeleton": {"errors"},
    "skeletons": {"errors", "skeleton"},
    "losses": {"bones", "errors", "skeleton"},
}


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(module, whether of the package) for every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (alias.name, alias.name.startswith("poseaug_plugin")) for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            if node.level and node.module is None:
                yield from ((alias.name, True) for alias in node.names)
            else:
                yield node.module or "", node.level > 0 or "poseaug_plugin" in (node.module or "")


def siblings(name: str) -> set[str]:
    return {module for module, is_own in imports(SOURCES[name]) if is_own}


each_file = pytest.mark.parametrize("name", FILES)


@each_file
def test_module_has_its_row(name: str) -> None:
    assert name in ROW_OF


def test_no_row_names_what_is_not_there() -> None:
    assert set(ROW_OF) == set(FILES)


@each_file
def test_imports_point_one_way(name: str) -> None:
    wrong = {other for other in siblings(name) if ROW_OF[other] >= ROW_OF[name]}
    assert wrong == set()


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_knows_little(name: str) -> None:
    assert siblings(name) <= LEAVES[name]


def test_nothing_imports_the_hook() -> None:
    assert {name for name in FILES if "hook" in siblings(name)} == {"__init__"}


def test_the_geometry_knows_nothing_of_networks() -> None:
    for name in ("skeleton", "bones", "rigid", "camera", "augmentation"):
        assert siblings(name) <= {"errors", "skeleton", "bones", "rigid", "camera", "windows"}


@each_file
def test_few_dependencies(name: str) -> None:
    allowed = {"torch", "numpy", "einops", "typing_extensions", *sys.stdlib_module_names}
    foreign = {module.split(".")[0] for module, is_own in imports(SOURCES[name]) if not is_own}
    assert foreign <= allowed


def test_oldest_versions_that_were_tested_are_the_oldest_allowed() -> None:
    project, tested = PACKAGE.parent / "pyproject.toml", Path(__file__).parent
    allowed = re.search(r"^dependencies = .*$", project.read_text(), re.MULTILINE)
    oldest = (tested / "constraints-lowest.txt").read_text()
    assert allowed
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)"', allowed.group())
    assert {name for name, _ in bounds} == {"torch", "numpy", "einops", "typing-extensions"}
    for name, bound in bounds:
        assert re.search(rf"^{name}=={re.escape(bound)}(\.|$)", oldest, re.MULTILINE), name


def test_package_is_flat() -> None:
    assert [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE] == []


# -- public names ----------------------------------------------------------------------------------

PUBLIC = [
    *("COCO_17", "H36M_16", "H36M_17", "MPI_INF_3DHP_17", "PRESETS", "SKELETONS", "SMPL_24"),
    *("Adapter", "AugmentationParameters", "AugmentationPolicy", "AugmentedPoses"),
    *(
        "CanonicalPoses",
        "HardnessPredictor",
        "HostPoses",
        "KeypointDiscriminator",
        "MotionDiscriminator",
    ),
    *(
        "PartKCSDiscriminator",
        "Policy",
        "PoseAdapter",
        "PoseAugConfig",
        "PoseAugError",
        "PoseAugHook",
    ),
    *(
        "PoseAugWarning",
        "PoseSource",
        "Ramp",
        "RandomPolicy",
        "RegressorPolicy",
        "Skeleton",
        "Spread",
        "apply_augmentation",
    ),
    *("in_view", "normalize_screen_coordinates", "project_points", "root_relative", "solve_root"),
]


def test_public_names() -> None:
    assert sorted(poseaug_plugin.__all__) == sorted(PUBLIC)


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

HOT = (
    *("hook", "policy", "regressor_policy", "discriminators", "hardness", "pool"),
    *("augmentation", "training", "critics"),
    *(
        "generation",
        "objectives",
        "losses",
        "camera",
        "bones",
        "rigid",
        "grouped",
        "curriculum",
        "guarded",
        "windows",
        "source",
        "ranks",
        "mixing",
        "placement",
        "regressors",
    ),
    *("observation", "adapters", "estimator_error"),
)
# What reads values or sits between training steps.
COLD = {
    *("state_dict", "load_state_dict", "problems_with", "get_extra_state", "set_extra_state"),
    *("open", "check_batch", "diagnostics", "_checked", "skeleton_tables", "__init__"),
}
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


@pytest.mark.parametrize("name", HOT)
def test_no_call_waits_for_the_device(name: str) -> None:
    assert list(hot_syncs(SOURCES[name])) == []


@pytest.mark.parametrize("line", ["x.item()", "x.cpu()", "y = f(x.tolist()) + 1", "torch.where(x)"])
def test_search_for_syncs_finds(line: str) -> None:
    tree = ast.parse(f"def step(x):\n    if x:\n        {line}\n")
    assert len(list(hot_syncs(tree))) == 1


class NoSync(TorchDispatchMode):
    """Raises where a value of a tensor would decide something on the host.

    Reading one (`item`, `bool`, `float`) and asking for as many as a mask has entries are operators
    of their own; indexing with a mask can be told by its arguments.
    """

    FORBIDDEN = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
    INDEXING = ("aten::index.", "aten::index_put", "aten::_index_put")

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = function.name()
        indices = arguments[1] if name.startswith(self.INDEXING) else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if by_mask or name.startswith(self.FORBIDDEN):
            raise AssertionError(f"{function} waits for the device")
        return function(*arguments, **(options or {}))


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


# Dropout as found takes its seed from the hook's stream, which is read.
WITHOUT_SYNC = [name for name in HOOKS if name not in ("estimator, as found", "released")]


@pytest.mark.parametrize("mix", ["replace", "append"])
@pytest.mark.parametrize("name", WITHOUT_SYNC)
def test_step_never_waits_for_the_device(name: str, mix: str) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, mix=mix, **HOOKS[name])
    train(hook, estimator, torch.optim.Adam(estimator.parameters()), stream(2))
    for seed in (5, 6):  # with critics and without
        camera, inputs_3d, inputs_2d = make_batch(seed=seed)
        with NoSync():
            inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        with NoSync():
            hook.step()
    assert hook.diagnostics().updates == 4


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
    assert hook.losses.predictor.isfinite()


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

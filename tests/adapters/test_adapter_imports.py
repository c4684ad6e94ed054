"""Adapters are files to be copied: of the project they know the package alone, by public names."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ADAPTERS = Path(__file__).resolve().parents[2] / "examples" / "adapters"
FILES = {path.name: path for path in sorted(ADAPTERS.glob("*.py"))}
# What hosts have installed anyway.
OTHERS = {"torch", "numpy", *sys.stdlib_module_names}
OF_HOST = {"mmpose_hook.py": {"mmengine"}}
OF_NAMED_TUPLES = {"_replace", "_asdict", "_fields"}

each_file = pytest.mark.parametrize("name", FILES)


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, wherever it stands; the name is empty for whole modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def is_of_the_package(module: str) -> bool:
    return module.split(".")[0] == "poseaug_plugin"


def problems(code: str, others: set[str] = OTHERS) -> list[str]:
    """Imports of something else, or of something private; private attributes of other objects."""
    tree, found = ast.parse(code), []
    for module, name in imports(tree):
        if not is_of_the_package(module):
            if module.split(".")[0] not in others:
                found.append(f"{module} is not the package's")
        elif any(part.startswith("_") for part in (*module.split("."), name)):
            found.append(f"{module}.{name} is private")
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} | {"self", "cls"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            is_own = isinstance(node.value, ast.Name) and node.value.id in own
            is_public = node.attr.startswith("__") or node.attr in OF_NAMED_TUPLES
            if not (is_own or is_public):
                found.append(f"{ast.unparse(node)} is private")
    return found


@each_file
def test_adapter_imports_public_names_alone(name: str) -> None:
    assert problems(FILES[name].read_text(), OTHERS | OF_HOST.get(name, set())) == []


@each_file
def test_names_that_an_adapter_imports_are_there(name: str) -> None:
    for module, imported in imports(ast.parse(FILES[name].read_text())):
        if is_of_the_package(module):
            assert not imported or hasattr(importlib.import_module(module), imported)


def test_every_adapter_is_looked_at() -> None:
    used = {
        name
        for name, path in FILES.items()
        if any(is_of_the_package(module) for module, _ in imports(ast.parse(path.read_text())))
    }
    hosts = ("mmpose_hook", "motionbert", "semgcn", "simple_baseline", "stgcn")
    assert used == {f"{host}.py" for host in hosts}


@pytest.mark.parametrize(
    "code",
    [
        "from poseaug_plugin.hook import _PRESETS",
        "from poseaug_plugin._core import Skeleton",
        "import poseaug_plugin._core",
        "from .semgcn import SemGCNAdapter",
        "from shared.mocap import Motion",
        "import adapters.semgcn",
        "def f():\n    from estimators import SemGCN",
        "hook._observer.expect(None)",
        "def f(self):\n    return self.hook._trainer",
    ],
)
def test_search_finds(code: str) -> None:
    assert len(problems(code)) == 1


def test_search_lets_pass_what_is_an_adapters_own() -> None:
    code = """
import torch
from poseaug_plugin import PoseAdapter
from poseaug_plugin.host.adapter import camera_problem
class Own(PoseAdapter):
    def __post_init__(self):
        super().__post_init__()
        self._like = Own._first(torch.zeros(2))._replace(inputs_2d=None)
"""
    assert problems(code) == []

"""README and docs: no table is typed by hand, links and paths lead somewhere, code runs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pydoc
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from benchmarks.generalisation import ROWS
from shared.report import with_tables

import poseaug_plugin
from poseaug_plugin import Spread, metrics
from poseaug_plugin.host.checks import BatchReport
from poseaug_plugin.reference.recipes import Paper, Ramp, Released
from poseaug_plugin.runtime.monitor import Diagnostics

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(poseaug_plugin.__file__).parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
LINKING = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tests" / "golden" / "README.md",
]
RESULTS = sorted((ROOT / "docs" / "results").glob("*"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


class Fence(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str


def fences(page: Path) -> list[Fence]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Fence(*match) for match in found]


def prose(page: Path) -> str:
    """A page without code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


# -- tables ----------------------------------------------------------------------------------------


@each_page
def test_tables_are_those_of_the_results_files(page: Path) -> None:
    text = page.read_text()
    assert with_tables(text, ROOT) == text


def test_every_results_file_is_a_table_of_a_page() -> None:
    shown = {
        ROOT / match
        for page in PAGES
        for match in re.findall(
            r"^<!-- table: (\S+)(?: compact| both)? -->$", page.read_text(), re.M
        )
    }
    assert RESULTS
    assert shown == set(RESULTS)


@each_page
def test_every_table_mark_has_an_end(page: Path) -> None:
    marks = re.findall(r"<!-- (table|end)\b[^>]*-->", page.read_text())
    assert marks == ["table", "end"] * (len(marks) // 2)


def test_readme_says_how_the_opponent_is_made() -> None:
    said = re.search(r'`(preset="random", .*?\))`', (ROOT / "README.md").read_text())
    assert said is not None
    assert eval(f"dict({said[1]})", {"Spread": Spread}) == ROWS["random, tuned"]


# -- size ------------------------------------------------------------------------------------------


def test_docs_are_short() -> None:
    assert sum(len(page.read_text().split()) for page in DOCS) <= 15_000


def test_architecture_is_one_page() -> None:
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) <= 60


def test_architecture_names_every_module() -> None:
    tree = fences(ROOT / "docs" / "architecture.md")[0].code
    modules = {f"{name}.py" for name in re.findall(r"^  (\w+)\.py ", tree, re.MULTILINE)}
    for room, names in re.findall(r"^  (\w+)/ .*\n    ([\w ]+)$", tree, re.MULTILINE):
        modules |= {f"{room}/{name}.py" for name in names.split()}
    there = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert modules == {str(path) for path in there if path.name != "__init__.py"}


# -- links and paths -------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def test_links_are_found() -> None:
    wanted = {"docs/quickstart.png", "docs/hosts/mmpose.md", "docs/integration.md#promises"}
    assert wanted < set(links(ROOT / "README.md"))


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if not link.startswith(("https://", "http://")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


# What the hosts' pages call by such names is often the hosts'.
@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name != "hosts"], ids=name_of)
def test_scripts_that_a_page_names_are_there(page: Path) -> None:
    for script in re.findall(r"[`\s(]((?:\w+/)+\w+\.py)\b", page.read_text()):
        assert any((folder / script).exists() for folder in (ROOT, ROOT / "examples", PACKAGE)), (
            script
        )


# -- API -------------------------------------------------------------------------------------------

API = [
    name
    for page in sorted((ROOT / "docs" / "api").glob("*.md"))
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("name", API)
def test_name_of_an_api_page_is_there_and_explained(name: str) -> None:
    assert API.count(name) == 1
    assert inspect.getdoc(pydoc.locate(name))


def public_functions(module: ModuleType) -> list[object]:
    found = inspect.getmembers(module, inspect.isfunction)
    return [f for name, f in found if f.__module__ == module.__name__ and name[0] != "_"]


def test_api_pages_leave_nothing_public_out() -> None:
    shown = [pydoc.locate(name) for name in API]
    shown += [f for module in filter(inspect.ismodule, shown) for f in public_functions(module)]
    public = [getattr(poseaug_plugin, name) for name in poseaug_plugin.__all__]
    public += [*public_functions(metrics), Diagnostics, BatchReport, Paper, Released, Ramp]
    assert len(public) >= 34
    assert [x for x in public if not any(x is y for y in shown)] == []


# -- code ------------------------------------------------------------------------------------------


def module_named(name: str) -> ModuleType:
    """An installed module, or an adapter of the examples, which users copy beside their script."""
    if (ROOT / "examples" / "adapters" / f"{name}.py").exists():
        name = f"adapters.{name}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what mmengine has to say, where there is one
        return importlib.import_module(name)


def imported(page: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of Python blocks, and those that a diff adds."""
    for language, code in fences(page):
        if language == "diff":
            code = "\n".join(re.findall(r"^\+((?:import|from) .*)$", code, re.MULTILINE))
        if language in ("python", "diff"):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield node


@each_page
def test_documented_imports_are_there(page: Path) -> None:
    for node in imported(page):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module_named(alias.name)
        else:
            module = module_named(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_imports_are_found_in_blocks_and_diffs() -> None:
    of_page = {page: list(imported(page)) for page in PAGES}
    hosts = [page for page in PAGES if page.parent.name == "hosts" and page.stem != "mmpose"]
    assert len(hosts) == 5
    for page in (ROOT / "README.md", ROOT / "docs" / "presets.md", *hosts):
        assert of_page[page], page


BLOCKS = [
    pytest.param(fence.code, id=f"{name_of(page)}-{number}")
    for page in PAGES
    for number, fence in enumerate(f for f in fences(page) if f.language == "python")
]


def test_some_code_is_documented() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("code", BLOCKS)
def test_documented_code_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile(code, "documented", "exec")
    # SimpleBaseline's block reads what the user has.
    (tmp_path / "data").mkdir()
    pixels = np.random.default_rng(0).uniform(0, 1000, (8, 17, 2))
    np.save(tmp_path / "train_pixels.npy", pixels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "simple_baseline", module_named("simple_baseline"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compiled, {"__name__": "documented"})


# ST-GCN's are about its scale, too, which is always 1 and left out here.
@pytest.mark.parametrize("host", ["videopose3d", "semgcn", "simple_baseline"])
def test_script_has_the_documented_lines(host: str) -> None:
    page = (ROOT / "docs" / "hosts" / f"{host}.md").read_text()
    diff = page.split("```")[1]  # the first; a second one is about another of the host's scripts
    code = as_one_line((ROOT / "examples" / f"train_{host}.py").read_text())
    added = re.findall(r"^\+(.*(?:PoseAugHook\(|\.augment\().*)$", diff, flags=re.MULTILINE)
    assert len(added) == 2
    for line in added:  # VideoPose3D's hook has another argument here, for longer windows
        assert as_one_line(line).removesuffix(")") in code


def as_one_line(code: str) -> str:
    """Without white space, with one kind of quotes, and the hook where our scripts have it."""
    return re.sub(r"\s", "", code).replace("'", '"').replace("train.hook", "hook")

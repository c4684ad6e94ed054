"""The real code bases with the documented lines in them.

    POSEAUG_HOSTS=FOLDER pytest tests/hosts

FOLDER holds the checkouts, named as in `HOSTS`; POSEAUG_HOST_DATA the folders h36m17 and h36m16.
"""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from .hosts import HOSTS
from .runner import (
    CHECKOUTS,
    DATA,
    PROJECT,
    Edit,
    Host,
    HostMovedError,
    HostRunError,
    Trained,
    prepare,
    run,
    train,
)

each_host = pytest.mark.parametrize("name", HOSTS)


def available(name: str) -> Host:
    host = HOSTS[name]
    if not CHECKOUTS:
        pytest.skip("POSEAUG_HOSTS is not set: no checkouts of the code bases")
    if not (host.checkout / host.script).exists():
        pytest.skip(f"no checkout of {name}: {host.checkout / host.script} is not there")
    if not (DATA / host.data).is_dir():
        pytest.skip(f"no data in {DATA / host.data}")
    missing = [module for module in host.needs if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{name} imports {', '.join(missing)}")
    return host


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """Two epochs of a host: "plain", with the hook "paused" or "active"; each once."""

    @lru_cache
    def of(name: str, kind: str) -> Trained:
        host = available(name)
        folder = prepare(host, tmp_path_factory.mktemp(name) / kind, hooked=kind != "plain")
        return train(host, folder, "active" if kind == "active" else "paused")

    return of


@each_host
def test_paused_hook_leaves_the_losses_as_they_were(name: str, trained) -> None:
    plain, paused = trained(name, "plain"), trained(name, "paused")
    assert len(plain.losses) == 2
    assert plain.losses == paused.losses
    assert plain.hook is None
    assert paused.hook["updates"] == 0


@each_host
def test_host_trains_with_the_hook(name: str, trained) -> None:
    active = trained(name, "active")
    first, second = map(float, active.losses)
    assert second < first
    assert active.losses != trained(name, "plain").losses
    assert active.hook["updates"] > 20
    assert active.hook["kept_share"] > 0.9
    assert active.hook["learned"] > 0
    assert math.isfinite(active.hook["hardness_ratio"])  # it has seen the host's predictions
    assert active.hook["unusable_samples"] == 0


@each_host
def test_checkpoint_loads_into_the_unmodified_host(name: str, trained, tmp_path: Path) -> None:
    host = available(name)
    checkpoint = next(trained(name, "active").folder.glob(host.checkpoint))
    plain = prepare(host, tmp_path / "plain", hooked=False)
    (plain / "checkpoint" / "ours.bin").write_bytes(checkpoint.read_bytes())
    arguments = tuple(a.format(checkpoint="ours.bin") for a in host.evaluate)
    printed = run(host, plain, arguments, script=host.evaluation_script)
    assert re.search(host.evaluated, printed, flags=re.MULTILINE)


# -- without any checkout --------------------------------------------------------------------------


def test_edit_says_that_the_host_has_moved(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(HostMovedError, match=r"Host: a\.py should have 1 line.*has 0"):
        Edit("a.py", "y = ", ("...",)).apply(tmp_path, "Host")
    with pytest.raises(HostMovedError, match=r"missing\.py"):
        Edit("missing.py", "x = ", ("...",)).apply(tmp_path, "Host")


def test_edit_keeps_indentation(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("if 1:\n    for _, b in c:\n")
    Edit("a.py", "for _,", ("before()", ("_,", "a,"), "...")).apply(tmp_path, "Host")
    expected = "if 1:\n    before()\n    for a, b in c:\n    for _, b in c:\n"
    assert (tmp_path / "a.py").read_text() == expected


SCRIPT = """
import sys
import torch
from poseaug_plugin import PoseAugHook, metrics, project_points

epochs = int(sys.argv[1])
camera = torch.tensor([2.29, 2.29, *[0.0] * 7]).expand(32, 9)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(34, 51))
optimizer = torch.optim.Adam(network.parameters())
hook = PoseAugHook(network, skeleton="h36m_17")
for _ in range(epochs):
    joints = 0.3 * torch.randn(32, 1, 17, 3) + torch.tensor([0.0, 0.0, 5.0])
    target = torch.cat([joints[:, :, :1], joints[:, :, 1:] - joints[:, :, :1]], 2)
    seen, target = hook.augment(project_points(joints, camera), target, camera)
    target[:, :, 0] = 0
    loss = metrics.mpjpe(network(seen).view(32, 1, 17, 3), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.6f}")
"""


@pytest.mark.parametrize(("mode", "updates"), [("active", 4), ("paused", 0)])
def test_report_tells_what_the_hook_did(tmp_path: Path, mode: str, updates: int) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    host = replace(
        HOSTS["SemGCN"], script="train.py", arguments=("4",), log="", losses=r"^loss (.*)"
    )
    trained = train(host, tmp_path, mode)
    assert len(trained.losses) == 4
    assert trained.hook["updates"] == updates
    assert (trained.hook["learned"] > 0) == bool(updates)
    assert math.isfinite(trained.hook["hardness_ratio"]) == bool(updates)
    assert list(trained.hook["critic_accuracy"]) == ["critic_3d", "critic_2d"]
    assert len(trained.hook["spread_factors"]) == 5


def test_failing_script_says_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('so far')\nraise ValueError('no further')\n")
    host = replace(HOSTS["SemGCN"], script="train.py")
    with pytest.raises(HostRunError, match=r"SemGCN failed:\n(?s:.*)so far(?s:.*)no further"):
        run(host, tmp_path, ())


@each_host
def test_documentation_has_the_lines(name: str) -> None:
    host = HOSTS[name]
    text = (PROJECT / "docs" / "hosts" / f"{host.page}.md").read_text()
    for edit in host.hook:
        for line in edit.becomes:
            if line != "...":
                added = re.escape(line) + "$" if isinstance(line, str) else re.escape(line[1])
                assert re.search(rf"^\+ *{added}", text, flags=re.MULTILINE)

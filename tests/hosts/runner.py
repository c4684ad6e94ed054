"""Takes a checkout of a host, puts the documented lines into a copy of it, and runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
CHECKOUTS = os.environ.get("POSEAUG_HOSTS", "")
DATA = Path(os.environ.get("POSEAUG_HOST_DATA", PROJECT.parent / "shared" / "data"))


def link_data(source: Path, folder: Path) -> None:
    """The host reads Human3.6M's ``data_*.npz`` as they are, in its ``data/``."""
    for file in source.glob("data_*.npz"):
        (folder / "data" / file.name).unlink(missing_ok=True)
        (folder / "data" / file.name).symlink_to(file.resolve())


class HostMovedError(AssertionError):
    """A line of the host is not where the documentation says; the library is not at fault."""


class HostRunError(AssertionError):
    """The host's script failed."""


@dataclass(frozen=True)
class Edit:
    """A line of the host, found by what it looks like, and what stands there afterwards.

    Args:
        file: Path in the checkout.
        line: Regular expression that exactly ``count`` lines have to match.
        becomes: The new lines, indented like the old one; ``...`` stands for the old line, and a
            pair (pattern, text) for the old line with that substitution.
        count: How many such lines there are.
        after: If given, only the first such line after one that matches this.
    """

    file: str
    line: str
    becomes: tuple[str | tuple[str, str], ...]
    count: int = 1
    after: str = ""

    def apply(self, folder: Path, host: str) -> None:
        """Edit the file.

        Raises:
            HostMovedError: The line is not there, or not only there.
        """
        path = folder / self.file
        lines = path.read_text().split("\n") if path.exists() else []
        start = next((i for i, line in enumerate(lines) if re.search(self.after, line)), len(lines))
        places = [i for i in range(start, len(lines)) if re.search(self.line, lines[i])]
        if self.after:
            places = places[:1]
        if len(places) != self.count:
            raise HostMovedError(
                f"{host}: {self.file} should have {self.count} line(s) like {self.line!r}, has "
                f"{len(places)}. The host has moved; docs/hosts and tests/hosts need a look."
            )
        for i in reversed(places):
            old = lines[i]
            indent = old[: len(old) - len(old.lstrip())]
            lines[i : i + 1] = [self._made(part, old, indent) for part in self.becomes]
        path.write_text("\n".join(lines))

    @staticmethod
    def _made(part: str | tuple[str, str], old: str, indent: str) -> str:
        if isinstance(part, tuple):
            return re.sub(part[0], part[1], old)
        return old if part == "..." else indent + part


@dataclass(frozen=True)
class Host:
    """A code base and what is done with it.

    Args:
        name: What it is called.
        page: Name of its page in docs/hosts.
        script: What is run.
        data: Folder in POSEAUG_HOST_DATA.
        arguments: Of the script, for two short epochs.
        evaluate: Of the script, to load ``{checkpoint}``, a file in ``checkpoint/``, and evaluate.
        evaluation_script: What does that, where it is another script.
        evaluated: What it prints then, a regular expression.
        checkpoint: Glob of what the training leaves.
        losses: Regular expression of a training loss, one match per epoch.
        hook: The documented lines.
        folder: Of the checkout in POSEAUG_HOSTS; ``name`` by default.
        adapter: File in examples/adapters that the user copies beside the script.
        prepare_data: Fills ``data/`` of a scratch copy (second) from ``data`` (first).
        log: Glob of the file that has the losses; the printed text by default.
        runs_at_all: What the host needs on a machine without CUDA and with today's Python.
        needs: Modules that the host imports.
        timeout: Seconds that one run may take.
    """

    name: str
    page: str
    script: str
    data: str
    arguments: tuple[str, ...]
    evaluate: tuple[str, ...]
    evaluated: str
    checkpoint: str
    losses: str
    hook: tuple[Edit, ...]
    evaluation_script: str = ""
    folder: str = ""
    adapter: str = ""
    prepare_data: Callable[[Path, Path], None] = link_data
    log: str = ""
    runs_at_all: tuple[Edit, ...] = ()
    needs: tuple[str, ...] = ()
    timeout: float = 900.0

    @property
    def checkout(self) -> Path:
        """Where its code is."""
        return Path(CHECKOUTS) / (self.folder or self.name)


class Trained(NamedTuple):
    """What a run left."""

    folder: Path
    printed: str
    losses: tuple[str, ...]  # as printed, digit for digit
    hook: dict[str, Any] | None


def prepare(host: Host, folder: Path, hooked: bool) -> Path:
    """A scratch copy of the checkout with data, able to run, perhaps with the documented lines."""
    shutil.copytree(
        host.checkout, folder, ignore=shutil.ignore_patterns(".git"), ignore_dangling_symlinks=True
    )
    (folder / "data").mkdir(exist_ok=True)
    (folder / "checkpoint").mkdir(exist_ok=True)
    host.prepare_data(DATA / host.data, folder)
    if host.adapter:
        shutil.copy(PROJECT / "examples" / "adapters" / host.adapter, folder)
    for edit in host.runs_at_all + (host.hook if hooked else ()):
        edit.apply(folder, host.name)
    return folder


def run(
    host: Host, folder: Path, arguments: tuple[str, ...], mode: str = "active", script: str = ""
) -> str:
    """Run the host's script, or another one, in its folder and return what it printed.

    Raises:
        HostRunError: It failed, or took too long.
    """
    command = [
        *(sys.executable, str(Path(__file__).parent / "run_script.py")),
        *(str(folder / "report.json"), mode, script or host.script, *arguments),
    ]
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            env=environment,
            timeout=host.timeout,
        )
    except subprocess.TimeoutExpired as problem:
        raise HostRunError(f"{host.name} took more than {host.timeout:.0f} s") from problem
    if done.returncode:
        raise HostRunError(f"{host.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def train(host: Host, folder: Path, mode: str = "active") -> Trained:
    """Run the training."""
    printed = run(host, folder, host.arguments, mode)
    text = next(folder.glob(host.log)).read_text() if host.log else printed
    losses = tuple(re.findall(host.losses, text, flags=re.MULTILINE))
    hooks = json.loads((folder / "report.json").read_text())
    return Trained(folder, printed, losses, hooks[0] if hooks else None)

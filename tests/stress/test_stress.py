"""Faults injected from outside, many at random: nothing of the user's is lost, nothing is silent.

    POSEAUG_STRESS=full python -m pytest -q -s tests/stress      # 20 minutes; prints the table
    python -m pytest -q tests/stress                             # the short form

The table of docs/reliability.md is what the full form prints.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import resource
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from loops import (
    HOOKS,
    OPTIMIZERS,
    Host,
    adam,
    all_finite,
    augmented,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    run_host,
    stream,
    train,
)

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "runtime"), str(HERE.parent / "hook")]

import test_checkpoint as mutations  # noqa: E402
import test_interrupts as interrupts  # noqa: E402
from batches import drawn_batch, refused_or_clean, unspoiled  # noqa: E402
from shared import checkpoints  # noqa: E402

from poseaug_plugin import PoseAdapter, PoseAugError, PoseAugHook, Spread  # noqa: E402
from poseaug_plugin.reference.recipes import Paper, Released  # noqa: E402

FULL = os.environ.get("POSEAUG_STRESS") == "full"
pytestmark = [
    pytest.mark.stress,
    pytest.mark.filterwarnings("ignore::poseaug_plugin.PoseAugWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quant"),
    pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning"),
]


def times(short: int, full: int) -> int:
    """How often a fault is injected."""
    return full if FULL else short


def tell(injected: str, found: Counter[str], lost: int = 0) -> None:
    """One row of the table."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.items()))
    print(f"\n| {injected} | {found.total():,} | {kinds} | {lost} |")


# -- the host --------------------------------------------------------------------------------------


def test_the_host_is_bit_identical_with_and_without_the_hook() -> None:
    kinds: list[dict[str, Any]] = [
        *({"optimizer": name} for name in OPTIMIZERS),
        *({"autocast": True}, {"overflows": (1, 2)}, {"accumulation": 3}, {"frames": 3}),
        *({"batch_norm": False}, {"dropout": 0.0}, {"frozen": True}, {"gradients_off": True}),
        {"autocast": True, "overflows": (0,), "accumulation": 2},
    ]
    matrix = list(itertools.product(kinds, HOOKS, ("replace", "append")))
    random.Random(0).shuffle(matrix)
    found: Counter[str] = Counter()
    for kind, name, mix in matrix[: times(10, len(matrix))]:
        host = Host(**kind)
        batches = stream(4, frames=host.frames)
        plain, _ = run_host(host, None, batches)
        hooked, updates = run_host(host, {**HOOKS[name], "mix": mix}, batches)
        assert differences(plain, hooked) == [], (kind, name, mix)
        assert updates > 0
        found["identical"] += 1
    tell("trainings with the hook's output ignored, against none", found)


# -- batches ---------------------------------------------------------------------------------------


def test_every_batch_is_refused_in_words_or_comes_back_clean() -> None:
    hooks = []
    for root, frames, mix in itertools.product(
        ("trajectory", "absolute", "zeroed"), (1, 9), ("replace", "append")
    ):
        hook = make_hook(make_lifter(frames=frames), adapter=PoseAdapter(root=root), mix=mix)
        hooks.append((root, frames, hook))
    found: Counter[str] = Counter()
    for seed in range(times(1200, 100_000)):
        chance = random.Random(seed)
        root, frames, hook = hooks[seed % len(hooks)]
        answer = refused_or_clean(hook, drawn_batch(chance, frames, root), chance.random() < 0.5)
        assert answer in ("refused", "clean"), (seed, answer)
        found[answer] += 1
        if seed % 4 == 0:
            hook.step()
    assert all(all_finite(hook) for _, _, hook in hooks)
    assert min(found.values()) > 0.2 * found.total()
    tell("fuzzed batches", found)


# -- options ---------------------------------------------------------------------------------------

WRONG: tuple[Any, ...] = (-1, 0, math.nan, math.inf, "x", None, True, 1e30, 0.5, [], 2**70)
OPTIONS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("share", "critic_weight", "entropy_weight", "total_updates", "seed"), WRONG),
    "preset": ("default", "random", "paper", "released", "none", 3, Paper, None),
    "mix": ("replace", "append", "both", 1),
    "feedback": (True, False, "yes", 1),
    "auto_step": (True, False, "no", 0),
    "cuda_graphs": (True, False, None, "x"),
    "operations": (None, ("rigid",), (), "rigid", ("bend",), 3),
    "skeleton": ("h36m_16", "h36m_17", "mine", 16, None),
}
PARTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "spread": (Spread, tuple(f.name for f in fields(Spread))),
    "adapter": (PoseAdapter, tuple(f.name for f in fields(PoseAdapter))),
    "preset": (Paper, tuple(f.name for f in fields(Paper))),
    "released": (Released, tuple(f.name for f in fields(Released))),
}


def refused_or_trained(options: Callable[[], dict[str, Any]]) -> str:
    """Build a hook and train it; what else than a refusal goes wrong is raised."""
    estimator = make_lifter()
    try:
        hook = PoseAugHook(estimator, **{"skeleton": "h36m_16", **options()})
    except PoseAugError:
        return "refused"
    try:
        train(hook, estimator, adam(estimator), stream(3))
    except PoseAugError:  # a skeleton that is not the batch's
        return "refused"
    if hook._trainer is not None:
        assert all_finite(hook)
    assert all(p.isfinite().all() for p in estimator.parameters())
    return "trained"


def test_every_option_with_every_odd_value() -> None:
    found: Counter[str] = Counter()
    of_hook = [(name, value) for name, values in OPTIONS.items() for value in values]
    cases = [(lambda n=n, v=v: {n: v}) for n, v in of_hook]
    for where, (make, names) in PARTS.items():
        key = "preset" if where == "released" else where
        total = {"total_updates": 20} if key == "preset" else {}
        wrong = itertools.product(names, (*WRONG, (1, 2), (2, 1), (math.nan, 1)))
        cases += [
            (lambda k=key, m=make, n=n, v=v, t=total: {k: m(**{n: v}), **t}) for n, v in wrong
        ]
    if not FULL:
        cases = cases[::12]
    for case in cases:
        found[refused_or_trained(case)] += 1
    tell("options, one with an odd value", found)


def test_random_options_are_refused_or_trained_with() -> None:
    found: Counter[str] = Counter()
    for seed in range(times(60, 2000)):
        chance = random.Random(seed)
        options = {n: chance.choice(OPTIONS[n]) for n in chance.sample(list(OPTIONS), 2)}
        if chance.random() < 0.5:
            where = chance.choice(("spread", "adapter"))
            make, names = PARTS[where]
            value = chance.choice(WRONG)
            name = chance.choice(names)
            found[refused_or_trained(lambda: {**options, where: make(**{name: value})})] += 1  # noqa: B023
        else:
            found[refused_or_trained(lambda: options)] += 1  # noqa: B023
    tell("random constructions", found)


# -- checkpoints -----------------------------------------------------------------------------------


def in_a_child(work: Callable[[], None]) -> None:
    """Do the work in a forked process, which may die of it."""
    process = os.fork()
    if not process:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert status == 0, f"the child ended with {status}"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_mutated_checkpoints_are_refused_or_trained_with() -> None:
    found: Counter[str] = Counter()
    for preset in mutations.PRESETS:
        mutations.saved_state(preset)  # made before the processes part
        mutations.refusing(preset)
    for first in range(1000, 1000 + times(40, 1000), 20):
        answers = HERE / f".answers{os.getpid()}"

        def work(first: int = first, answers: Path = answers) -> None:
            said = []
            for seed in range(first, first + 20):
                chance = random.Random(seed)
                preset = mutations.PRESETS[seed % len(mutations.PRESETS)]
                state: Any = mutations.saved_state(preset)
                for _ in range(chance.choice((1, 1, 2, 3))):
                    with suppress(TypeError, RuntimeError):  # what was mutated cannot be again
                        state = mutations.mutated(state, chance)
                if isinstance(state, dict) and state.get("training", 0) is None:
                    state = {}
                refused = mutations.is_refused(state, preset)
                said.append("refused, unchanged" if refused else "trained with, finite")
            answers.write_text("\n".join(said))

        in_a_child(work)
        found.update(answers.read_text().splitlines())
        answers.unlink()
    tell("mutated checkpoints, in forked processes", found)


def test_trainings_that_are_killed_go_on_bit_for_bit(tmp_path: Path) -> None:
    steps, command = times(4, 12), [sys.executable, str(HERE / "killed.py")]

    def start(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(exist_ok=True)
        process = [*command, str(folder), str(steps)]
        return subprocess.Popen(process, stdout=subprocess.PIPE, text=True)

    def finish(folder: Path) -> None:
        start(folder).communicate()

    finish(tmp_path / "whole")
    expected = checkpoints.load(tmp_path / "whole" / "last.pt")
    chance, found = random.Random(0), Counter[str]()
    while found.total() < times(1, 50):
        folder = tmp_path / f"killed{found.total()}"
        alive = True
        while alive:
            process = start(folder)
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 6)):
                process.stdout.readline()
            time.sleep(chance.random() * 0.02)
            alive = process.poll() is None
            process.kill()
            process.wait()
            process.stdout.close()
            found["killed"] += alive
        finish(folder)
        assert differences(expected, checkpoints.load(folder / "last.pt")) == []
    tell("kill -9 during a training that saves", found)


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path) -> None:
    hook, path = interrupts.prepared(3, {})[0], tmp_path / "run.pt"
    checkpoints.save(hook.state_dict(), path)
    before, size = path.read_bytes(), path.stat().st_size
    found: Counter[str] = Counter()
    for i in range(times(5, 50)):
        room = size * i // times(5, 50)

        def work(room: int = room) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            try:
                checkpoints.save(hook.state_dict(), path)
            except (OSError, RuntimeError):
                return
            raise AssertionError(room)

        in_a_child(work)
        assert path.read_bytes() == before
        assert [x.name for x in tmp_path.iterdir()] == ["run.pt"]
        found["old one whole"] += 1
    tell("checkpoints written to a full disk", found)


# -- interrupts, threads, length -------------------------------------------------------------------


@pytest.mark.skipif(not FULL, reason="test_interrupts.py is the short form")
@pytest.mark.parametrize("case", interrupts.CASES)
def test_an_interrupt_at_every_line_leaves_no_half_update(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, options, _ = interrupts.CASES[case]
    monkeypatch.setitem(interrupts.CASES, case, (updates, options, 1))
    found, once = Counter[str](), interrupts.interrupted

    def counted(call: Callable[[], Any], line: int) -> bool:
        stopped = once(call, line)
        found["undone or done"] += stopped
        return stopped

    monkeypatch.setattr(interrupts, "interrupted", counted)
    interrupts.test_an_interrupted_step_is_undone_or_done(case)
    tell(f"interrupts in step ({case})", found)


@pytest.mark.skipif(not FULL, reason="test_interrupts.py is the short form")
def test_an_interrupt_at_every_line_of_augment_leaves_no_trace() -> None:
    hook, estimator, optimizer = interrupts.prepared(3, {})
    start, found = frozen_state(hook), Counter[str]()
    host = interrupts.leavings(estimator, optimizer)
    for line in itertools.count():
        stopped = interrupts.interrupted(lambda: augmented(hook, make_batch()), line)
        now = frozen_state(hook)
        now["training"]["generator"] = start["training"]["generator"]
        assert differences(start, now) == []
        assert differences(host, interrupts.leavings(estimator, optimizer)) == []
        if not stopped:
            break
        found["no trace"] += 1
    tell("interrupts in augment", found)


def test_a_loop_without_a_hook_beside_hooks_that_come_and_go() -> None:
    over, failures, found = threading.Event(), [], Counter[str]()

    def plain_loop() -> None:
        try:
            estimator = make_lifter()
            optimizer = adam(estimator)
            while not over.is_set():
                train(None, estimator, optimizer, stream(2))
                found["plain steps"] += 2
        except BaseException as failure:
            failures.append(failure)

    def hooked_loop(seed: int) -> None:
        try:
            chance = random.Random(seed)
            while not over.is_set():
                estimator = make_lifter()
                hook = make_hook(estimator, preset="random")
                train(hook, estimator, adam(estimator), stream(2))
                if hook.diagnostics().updates != 2:
                    raise AssertionError("not two updates")
                found["hooks made and dropped"] += 1
                if chance.random() < 0.5:
                    hook.remove()
                elif chance.random() < 0.5:
                    hook.itself = hook  # type: ignore[attr-defined]
                    del hook
                    gc.collect()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=plain_loop) for _ in range(2)]
    threads += [threading.Thread(target=hooked_loop, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    over.wait(times(2, 60))
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    tell("threads beside each other", found)


def test_ten_thousand_steps_leave_nothing_behind() -> None:
    estimator = make_lifter()
    optimizer, hook = adam(estimator), make_hook(estimator)
    batches, steps = stream(20), times(400, 10_000)

    def kept() -> tuple[int, int]:
        gc.collect()
        return len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    train(hook, estimator, optimizer, batches)
    objects, memory = kept()
    for _ in range(steps // 20):
        train(hook, estimator, optimizer, batches)
    more_objects, more_memory = kept()
    assert more_objects - objects < 500
    assert more_memory - memory < 50_000  # kilobytes
    assert hook.diagnostics().updates == steps + 20
    assert all_finite(hook)
    found = Counter({"steps": steps})
    tell("steps, for what is left behind", found)


def test_the_fuzzers_own_batch_is_fine() -> None:
    """Or else everything might be refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = unspoiled()
        given = batch.inputs_2d, batch.inputs_3d, batch.camera
        assert refused_or_clean(make_hook(make_lifter()), given, True) == "clean"

"""The pool of older fakes: what is kept, swapped and given back."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_bodies import generator
from torch import Tensor

from poseaug_plugin.adversary.pool import FakePosePool


def numbered(first: int, last: int) -> Tensor:
    """Samples of shape (2,) that tell which they are."""
    return torch.arange(first, last, dtype=torch.float32)[:, None].expand(-1, 2)


def full_pool(capacity: int = 8, swap_probability: float = 0.5) -> FakePosePool:
    """Holds samples 0 to capacity."""
    pool = FakePosePool(capacity, (2,), swap_probability)
    pool.exchange(numbered(0, capacity), generator(0))
    return pool


def test_a_pool_fills_before_it_swaps() -> None:
    pool = FakePosePool(8, (2,), 1.0)
    for first, last, size in ((0, 3, 3), (3, 8, 8)):
        samples = numbered(first, last)
        assert torch.equal(pool.exchange(samples, generator(0)), samples)
        assert len(pool) == size
    assert torch.equal(pool.items, numbered(0, 8))


def test_a_batch_may_fill_the_pool_and_swap() -> None:
    pool = FakePosePool(8, (2,), 1.0)
    pool.exchange(numbered(0, 5), generator(0))
    out = pool.exchange(numbered(5, 10), generator(0))
    assert torch.equal(out[:3], numbered(5, 8))
    assert (out[3:] < 8).all()
    assert len(pool) == 8


@pytest.mark.parametrize("swap_probability", [0.0, 0.3, 1.0])
def test_the_share_that_is_swapped(swap_probability: float) -> None:
    pool, draws, random = full_pool(512, swap_probability), 20 * 256, generator(1)
    swapped = 0
    for i in range(20):
        samples = numbered(1000 + 256 * i, 1256 + 256 * i)
        swapped += int((pool.exchange(samples, random) != samples).all(1).sum())
    expected = swap_probability * draws
    assert abs(swapped - expected) <= 5 * math.sqrt(expected * (1 - swap_probability))


def test_samples_of_one_batch_go_to_distinct_slots() -> None:
    pool = full_pool(8, 1.0)
    out = pool.exchange(numbered(8, 16), generator(0))
    assert torch.equal(out.sort(0).values, numbered(0, 8))
    assert torch.equal(pool.items.sort(0).values, numbered(8, 16))


def test_every_slot_is_swapped_sooner_or_later() -> None:
    pool, random = full_pool(8), generator(0)
    for i in range(1, 60):
        pool.exchange(numbered(8 * i, 8 * i + 2), random)
    assert (pool.items >= 8).all()


def test_a_batch_larger_than_the_pool() -> None:
    pool = full_pool(4, 1.0)
    samples = numbered(4, 14)
    out = pool.exchange(samples, generator(0))
    assert torch.equal(out[:4].sort(0).values, numbered(0, 4))
    assert torch.equal(out[4:], samples[4:])
    assert torch.equal(pool.items.sort(0).values, samples[:4])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 6),
    st.lists(st.integers(0, 10), max_size=6),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 2**32),
)
def test_nothing_is_lost_and_nothing_doubled(
    capacity: int, batches: list[int], swap_probability: float, seed: int
) -> None:
    pool, random = FakePosePool(capacity, (), swap_probability), generator(seed)
    samples = torch.arange(sum(batches), dtype=torch.float32)
    out = [pool.exchange(batch, random) for batch in samples.split(batches)] if batches else []
    assert [len(batch) for batch in out] == batches
    # What fills the pool comes back as well, so it counts twice.
    stored = min(capacity, len(samples))
    assert len(pool) == stored
    there = torch.cat([*out, pool.items[:stored]]).sort().values
    assert torch.equal(there, torch.cat([samples, samples[:stored]]).sort().values)


def test_a_pool_without_capacity_gives_back_what_it_gets() -> None:
    pool = FakePosePool(0, (2,), 1.0)
    assert torch.equal(pool.exchange(numbered(0, 5), generator(0)), numbered(0, 5))
    assert len(pool) == 0


def test_a_pool_keeps_no_graph() -> None:
    pool = full_pool()
    samples = numbered(8, 12).clone().requires_grad_()
    out = pool.exchange(2 * samples, generator(0))
    assert not out.requires_grad
    assert not pool.items.requires_grad


def test_a_pool_does_not_change_what_it_got_or_gave() -> None:
    pool, samples, random = full_pool(8, 1.0), numbered(8, 16).clone(), generator(0)
    out = pool.exchange(samples, random)
    kept = out.clone()
    assert torch.equal(samples, numbered(8, 16))
    samples.zero_()
    pool.exchange(numbered(16, 24), random)
    assert torch.equal(out, kept)
    assert pool.items.min() == 16


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    state = torch.get_rng_state()
    one, other = (full_pool().exchange(numbered(8, 16), generator(5)) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fill", [0, 3, 8])
def test_a_pool_goes_on_where_its_state_was_saved(fill: int) -> None:
    pool = FakePosePool(8, (2,))
    pool.exchange(numbered(0, fill), generator(0))
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    file.seek(0)
    loaded = FakePosePool(8, (2,))
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert len(loaded) == fill
    samples = numbered(fill, fill + 6)
    assert torch.equal(loaded.exchange(samples, generator(1)), pool.exchange(samples, generator(1)))
    assert torch.equal(loaded.items, pool.items)
    assert len(loaded) == len(pool)

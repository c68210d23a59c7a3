from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from personae.models import find_targets
from personae.runtime.stored import flat_bits, read, rooms, save_and_clear, window, write
from personae.subnetwork import Mask


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, 2, 4, 8])), max_size=6))
def test_rooms_have_the_sizes_asked_for_and_share_nothing(sizes: list[tuple[int, int]]) -> None:
    found = rooms(sizes)
    assert [(room.size, room.itemsize) for room in found] == sizes
    for number, room in enumerate(found):
        room[:] = number
    assert all((room == number).all() for number, room in enumerate(found))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64])
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_clearing_keeps_what_the_mask_keeps_and_saves_all(kind, height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.integers(1, 100, (height, width)).astype(kind)
    before, dropped, room = rows.copy(), random.random((height, width)) < 0.5, np.zeros_like(rows)

    saved = list(save_and_clear(rows, Mask.from_dropped(dropped).packed(), room))

    assert saved[-1] == height
    np.testing.assert_array_equal(room, before)
    np.testing.assert_array_equal(rows, np.where(dropped, 0, before))


def test_clearing_goes_chunk_by_chunk_and_saves_before_it_clears() -> None:
    height, width = 200, 1001  # rows do not begin at whole bytes
    rows = np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width)
    before, room = rows.copy(), np.zeros_like(rows)
    dropped = np.random.default_rng(0).random(rows.shape) < 0.5
    chunks = 0
    for saved in save_and_clear(rows, Mask.from_dropped(dropped).packed(), room):
        chunks += 1
        np.testing.assert_array_equal(room[:saved], before[:saved])
        np.testing.assert_array_equal(rows[saved:], before[saved:])
    assert chunks > 2
    np.testing.assert_array_equal(rows, np.where(dropped, 0, before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_reading_and_writing_places(dtype: torch.dtype) -> None:
    parameter = torch.nn.Parameter(torch.arange(6, dtype=dtype).view(2, 3))
    bits = flat_bits(parameter)
    (room,) = rooms([(2, dtype.itemsize)])
    index = np.array([1, 5])
    values = read(bits, index, room)
    assert torch.from_numpy(values).view(dtype).tolist() == [1, 5]
    write(bits, index, 0)
    assert parameter.tolist() == [[0, 0, 2], [3, 4, 0]]
    write(bits, index, values)
    assert parameter.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_elsewhere_than_on_the_cpu_tensors_are_read_and_written() -> None:
    weights = torch.arange(6, dtype=torch.int32)  # what `flat_bits` gives for another device
    index = np.array([1, 5])
    values = read(weights, index, np.empty(0))
    write(weights, index, 0)
    assert weights.tolist() == [0, 0, 2, 3, 4, 0]
    write(weights, index, values)
    assert weights.tolist() == list(range(6))


def test_windows_are_views_of_the_targets(tiny_model, architecture) -> None:
    model, _ = tiny_model(architecture, dtype=torch.bfloat16)
    for target in find_targets(model):
        bits = window(target)
        assert bits.shape == target.shape
        bits[0, 0] = 0
        assert target.weight[0, 0] == 0

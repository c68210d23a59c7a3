from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from personae.models import find_targets
from personae.runtime import shared_out as module
from personae.runtime.shared_out import shared_out
from personae.runtime.switch import Drop, put_on, take_off
from personae.subnetwork import Mask

MANY = 1 << 30  # weights: enough for any number of threads


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_piece_once(threads: int) -> None:
    done: Counter[int] = Counter()
    lock, used = threading.Lock(), set()

    def work(piece: int) -> None:
        with lock:
            done[piece] += 1
            used.add(threading.get_ident())

    shared_out(work, range(500), MANY)
    assert done == Counter(range(500))
    assert 1 <= len(used) <= threads


def test_as_many_at_once_as_torch_has_threads(threads: int) -> None:
    meeting = threading.Barrier(threads, timeout=20)
    shared_out(lambda piece: meeting.wait() and None, range(threads), MANY)  # fewer would wait for ever
    assert not meeting.broken


def test_few_weights_start_no_thread(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.threading, "Thread", None)
    done: list[int] = []
    shared_out(done.append, range(9), 2 * module._WORTH - 1)
    assert done == list(range(9))


def test_an_error_ends_the_rest_and_is_raised_when_nothing_runs(threads: int) -> None:
    begun: list[int] = []

    def work(piece: int) -> None:
        begun.append(piece)
        if piece == 3:
            raise KeyboardInterrupt
        if piece > 3:
            threading.Event().wait(0.01)

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        shared_out(work, range(10**6), MANY)
    assert set(threading.enumerate()) <= before
    assert len(begun) < 10**6


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_switching_in_threads_is_bit_exact(threads, share, name, tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH", 1)
    model, _ = tiny_model(name)
    targets = find_targets(model)
    base = [target.weight.clone() for target in targets]
    chance = np.random.default_rng(0)
    dropped = [chance.random(target.shape) < share for target in targets]
    drops = [Drop(t, Mask.from_dropped(d)) for t, d in zip(targets, dropped, strict=True)]
    for _ in range(20):
        undo = put_on(drops)
        for target, before, gone in zip(targets, base, dropped, strict=True):
            assert torch.equal(target.weight, before.masked_fill(torch.from_numpy(gone), 0))
        take_off(undo)
        assert not undo.saved
        assert all(torch.equal(target.weight, before) for target, before in zip(targets, base, strict=True))

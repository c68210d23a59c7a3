from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import OptionError
from personae.runtime.kv import Kept
from personae.runtime.look import BASE, look_of
from personae.runtime.prefixes import Prefixes, common

A, B = look_of("a"), look_of("b")
few = st.lists(st.integers(0, 2), max_size=12).map(tuple)


def kept(tokens: tuple[int, ...], mark: float = 0.0) -> Kept:
    """One layer whose keys are the tokens and whose values are the mark of who computed them."""
    keys = torch.tensor(tokens, dtype=torch.float32)[None, :, None]
    return ((keys, torch.full_like(keys, mark)),)


def tokens_of(found: Kept | None) -> list[int]:
    return [] if found is None else found[0][0][0, :, 0].int().tolist()


@given(few, few)
def test_common_is_what_both_begin_with(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    length = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common(one, other) == length


@given(st.lists(st.tuples(st.sampled_from([BASE, A, B]), few), max_size=12), few)
def test_the_longest_beginning_under_the_same_look(known, prompt: tuple[int, ...]) -> None:
    marks, store = {BASE: 0.0, A: 1.0, B: 2.0}, Prefixes(1000)
    for look, tokens in known:
        store.keep(look, 0, tokens, lambda look=look, tokens=tokens: kept(tokens, marks[look]))
    for look, mark in marks.items():
        best = max((common(tokens, prompt[:-1]) for own, tokens in known if own == look), default=0)
        found = store.longest(look, 0, prompt)
        assert tokens_of(found) == list(prompt[:best])
        assert found is None or (found[0][1] == mark).all()


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 1), few), max_size=30), st.integers(0, 20))
def test_never_more_than_the_limit_and_never_a_beginning_twice(events, limit: int) -> None:
    store = Prefixes(limit)
    for look, edition, tokens in events:
        store.keep(look, edition, tokens, lambda tokens=tokens: kept(tokens))
        assert store.tokens <= limit
        assert store.tokens == sum(len(tokens) for _, tokens in store._kept)
        assert {look: set(own) for look, (_, own) in store._of_look.items()} == {
            look: {tokens for own, tokens in store._kept if own == look} for look, _ in store._kept
        }
        for own, one in store._kept:
            assert not any(own == o and one != t and common(one, t) == len(one) for o, t in store._kept)


def test_the_least_recently_used_goes_first() -> None:
    store = Prefixes(6)
    for tokens in ((1, 1), (2, 2), (3, 3)):
        store.keep(A, 0, tokens, lambda tokens=tokens: kept(tokens))
    assert tokens_of(store.longest(A, 0, (1, 1, 9))) == [1, 1]
    store.keep(B, 0, (4, 4), lambda: kept((4, 4)))
    assert store.longest(A, 0, (2, 2, 9)) is None
    assert tokens_of(store.longest(A, 0, (3, 3, 9))) == [3, 3]
    assert tokens_of(store.longest(A, 0, (1, 1, 9))) == [1, 1]


def test_what_is_kept_already_is_not_copied_again() -> None:
    store, copies = Prefixes(10), []

    def copied() -> Kept:
        copies.append(1)
        return kept((1, 2, 3))

    store.keep(A, 0, (1, 2, 3), copied)
    store.keep(A, 0, (1, 2, 3), copied)
    store.keep(A, 0, (1, 2), copied)
    store.keep(A, 0, (), copied)
    store.keep(A, 0, tuple(range(11)), copied)
    assert len(copies) == 1
    assert store.tokens == 3


def test_a_longer_one_replaces_its_own_beginning() -> None:
    store = Prefixes(10)
    for tokens in ((1, 2), (1, 2, 3), (1, 2, 3, 4, 5)):
        store.keep(A, 0, tokens, lambda tokens=tokens: kept(tokens))
    assert store.tokens == 5
    assert tokens_of(store.longest(A, 0, (1, 2, 3, 4, 9))) == [1, 2, 3, 4]


def test_another_persona_of_the_same_name_meets_nothing() -> None:
    store = Prefixes(10)
    store.keep(A, "old", (1, 2, 3), lambda: kept((1, 2, 3)))
    store.keep(B, "old", (1, 2), lambda: kept((1, 2)))
    assert store.longest(A, "new", (1, 2, 3, 4)) is None
    assert store.tokens == 2  # it is gone, and so does not come back with the old edition either
    assert store.longest(A, "old", (1, 2, 3, 4)) is None
    assert tokens_of(store.longest(B, "old", (1, 2, 3))) == [1, 2]


def test_a_look_and_its_strength_are_told_apart() -> None:
    store = Prefixes(10)
    store.keep(A, 0, (1, 2), lambda: kept((1, 2)))
    for look in (BASE, look_of("a", 0.5), look_of({"a": 1.0, "b": 1.0})):
        assert store.longest(look, 0, (1, 2, 3)) is None


def test_no_memory_leaves_the_store_as_it_was() -> None:
    store = Prefixes(10)
    store.keep(A, 0, (1, 2), lambda: kept((1, 2)))

    def full() -> Kept:
        raise MemoryError

    with pytest.raises(MemoryError):
        store.keep(A, 0, (5, 6), full)
    assert store.tokens == 2
    assert store.longest(A, 0, (5, 6, 7)) is None


def test_clear_and_no_limit_at_all() -> None:
    store = Prefixes(10)
    store.keep(A, 0, (1, 2), lambda: kept((1, 2)))
    store.clear()
    assert (store.tokens, store.longest(A, 0, (1, 2, 3))) == (0, None)
    none = Prefixes(0)
    none.keep(A, 0, (1,), lambda: pytest.fail("nothing may be copied"))
    assert none.longest(A, 0, (1, 2)) is None
    with pytest.raises(OptionError, match="prefix_tokens is -1"):
        Prefixes(-1)

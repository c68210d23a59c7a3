from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personae.runtime.decoding import Halt, Reader, Sampler, nucleus


class Letters:
    """A stand-in tokenizer: token n is the byte n."""

    def decode(self, tokens: list[int], **options: object) -> str:
        return bytes(tokens).decode(errors="replace")


def read(text: str, stops: list[str]) -> list[str]:
    pieces: list[str] = []
    reader = Reader(Letters(), stops, pieces.append)  # type: ignore[arg-type]
    reader.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for byte in text.encode():
        reader.put(torch.tensor([byte]))
    reader.end()
    return pieces


@given(
    st.text(alphabet="abcä—🎭 ", max_size=20),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=3),
)
def test_pieces_are_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    # The first stop is the one that is complete first: nobody waits for a longer one that began before it.
    written = next((text[:n] for n in range(len(text) + 1) if any(stop in text[:n] for stop in stops)), text)
    found = [written.index(stop) for stop in stops if stop in written]
    assert "".join(read(text, stops)) == written[: min(found, default=len(text))]


def test_an_unfinished_character_is_held_back() -> None:
    assert read("a🎭b", []) == ["a", "🎭", "b"]


def test_what_may_become_a_stop_is_held_back_and_let_go() -> None:
    assert read("xEN END", ["END"]) == ["x", "EN "]
    assert read("xEN", ["END"]) == ["x", "EN"]


def test_the_reader_says_when_it_has_stopped() -> None:
    reader = Reader(Letters(), ["!"], lambda piece: None)  # type: ignore[arg-type]
    halt = Halt(reader, threading.Event())
    ids, scores = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 5)
    reader.put(torch.tensor([[0]]))
    reader.put(torch.tensor([97]))
    assert halt(ids, scores).tolist() == [False, False]
    reader.put(torch.tensor([33]))
    assert halt(ids, scores).tolist() == [True, True]


def test_halt_when_cancelled() -> None:
    cancelled = threading.Event()
    halt = Halt(Reader(Letters(), [], lambda piece: None), cancelled)  # type: ignore[arg-type]
    cancelled.set()
    assert halt(torch.zeros(1, 1), torch.zeros(1, 1)).tolist() == [True]


def test_nucleus_by_hand() -> None:
    probabilities = torch.tensor([0.2, 0.5, 0.05, 0.25])
    torch.testing.assert_close(nucleus(probabilities, 0.5), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(nucleus(probabilities, 0.6), torch.tensor([0.0, 2 / 3, 0.0, 1 / 3]))
    torch.testing.assert_close(nucleus(probabilities, 1.0), probabilities)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8), st.floats(1e-9, 1))
def test_nucleus_is_the_smallest_set(weights: list[float], top_p: float) -> None:
    probabilities = torch.tensor(weights, dtype=torch.float64)
    probabilities /= probabilities.sum()
    kept = nucleus(probabilities, top_p) > 0
    mass = float(probabilities[kept].sum())
    assert mass >= top_p - 1e-9
    assert mass - float(probabilities[kept].min()) < top_p, "without its least likely token it would be too small"
    assert kept.all() or probabilities[kept].min() >= probabilities[~kept].max()


def draw(seed: int | None, temperature: float = 1.0, top_p: float = 1.0, times: int = 400) -> list[int]:
    sampler = Sampler(temperature, top_p, seed)
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    return [int(sampler(torch.zeros(1, 1), scores).argmax()) for _ in range(times)]


def test_sampling_follows_the_distribution() -> None:
    counts = torch.bincount(torch.tensor(draw(0, temperature=0.7)), minlength=4) / 400
    expected = (torch.tensor([0.0, 1.0, 2.0, -1.0]) / 0.7).softmax(0)
    torch.testing.assert_close(counts, expected, atol=0.07, rtol=0)


def test_same_seed_same_draws_and_nobody_elses_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert draw(1) == draw(1)
    assert torch.equal(torch.rand(3), expected)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_only_the_drawn_token_is_left() -> None:
    only = Sampler(1.0, 1.0, 0)(torch.zeros(1, 1), torch.tensor([[0.0, 1.0, 2.0]]))
    assert torch.isfinite(only).sum() == 1


def test_top_p_and_tiny_temperatures_take_the_likeliest() -> None:
    assert set(draw(0, top_p=1e-6)) == {2}
    assert set(draw(0, temperature=1e-300)) == {2}


def test_excluded_tokens_are_never_drawn() -> None:
    sampler = Sampler(5.0, 1.0, 0)
    scores = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    assert {int(sampler(torch.zeros(1, 1), scores).argmax()) for _ in range(50)} == {1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores(dtype: torch.dtype) -> None:
    assert Sampler(1.0, 0.9, 0)(torch.zeros(1, 1), torch.tensor([[0.0, 9.0]], dtype=dtype)).dtype == dtype

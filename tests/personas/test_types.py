"""Contrast and Persona: what they refuse, and the algebra of swapping, taking and shuffling."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import DataError, OptionError
from personae.personas import Contrast, Pair, Persona, Sample

words = st.text(alphabet="abc XYZ?é", min_size=1, max_size=12)
pairs = st.lists(st.builds(Pair, words, words, words), min_size=1, max_size=12).map(tuple)
samples = st.lists(st.builds(Sample, words, words), min_size=1, max_size=12).map(tuple)
names = st.sampled_from(["warm-cold", "cold-warm", "weather"])
paired = st.builds(lambda name, p: Contrast(name, "warm", "cold", p, positive_prompt="Be warm."), names, pairs)
unpaired = st.builds(
    lambda name, a, b: Contrast(name, "warm", "cold", positive_samples=a, negative_samples=b),
    names,
    samples,
    samples,
)
contrasts = st.one_of(paired, unpaired)


def texts(contrast: Contrast) -> list[tuple[str, str]]:
    """Every (question, answer) of both poles, sorted."""
    both = contrast.samples(contrast.positive) + contrast.samples(contrast.negative)
    return sorted((sample.prompt, sample.answer) for sample in both)


@given(contrasts)
def test_swapping_exchanges_the_poles_and_twice_is_nothing(contrast: Contrast) -> None:
    turned = contrast.swapped()
    assert turned.poles == ("cold", "warm")
    assert turned.samples("warm") == contrast.samples("warm")
    assert turned.negative_prompt == contrast.positive_prompt
    assert turned.swapped() == contrast


def test_swapping_turns_only_a_name_made_of_the_poles() -> None:
    row = (Pair("q", "a", "b"),)
    assert Contrast("warm-cold", "warm", "cold", row).swapped().name == "cold-warm"
    assert Contrast("weather", "warm", "cold", row).swapped().name == "weather"


@given(contrasts, st.integers(0, 2**32))
def test_shuffled_labels_keep_every_text_and_the_sizes(contrast: Contrast, seed: int) -> None:
    shuffled = contrast.shuffled_labels(seed)
    assert texts(shuffled) == texts(contrast)
    assert len(shuffled) == len(contrast)
    assert shuffled == contrast.shuffled_labels(seed)


def test_shuffled_labels_turn_about_half_of_the_pairs() -> None:
    contrast = Contrast("n", "warm", "cold", tuple(Pair(str(i), "a", "b") for i in range(1000)))
    turned = sum(pair.positive == "b" for pair in contrast.shuffled_labels(1).pairs)
    assert 430 < turned < 570  # 4.4 standard deviations
    assert contrast.shuffled_labels(1) != contrast.shuffled_labels(2)


@given(contrasts, st.integers(0, 99), st.data())
def test_choices_of_one_seed_are_nested_and_in_order(contrast: Contrast, seed: int, data: st.DataObject) -> None:
    few = data.draw(st.integers(1, len(contrast)))
    many = data.draw(st.integers(few, len(contrast)))
    small, large = contrast.take(few, seed), contrast.take(many, seed)
    assert len(small) == few
    for pole in contrast.poles:
        rest = iter(large.samples(pole))
        assert all(sample in rest for sample in small.samples(pole))  # a subsequence


def test_taking_all_is_the_contrast_and_more_or_none_is_refused() -> None:
    contrast = Contrast("n", "warm", "cold", (Pair("q", "a", "b"), Pair("r", "c", "d")))
    assert contrast.take(2, seed=5) == contrast
    for n in (0, 3):
        with pytest.raises(OptionError, match=rf"cannot take {n} items of 'n': it has 2"):
            contrast.take(n)
    with pytest.raises(OptionError, match="ask for 1 to 1"):
        Persona("p", (Sample("q", "a"),)).take(2)


@given(contrasts)
def test_the_hash_sees_content_and_order_but_not_labels(contrast: Contrast) -> None:
    relabelled = replace(contrast, name="x", description="d", licence="CC0-1.0", positive_prompt="p")
    assert relabelled.sha256 == contrast.sha256
    assert contrast.swapped().sha256 != contrast.sha256
    assert replace(contrast, positive="hot").sha256 != contrast.sha256


def test_the_hash_sees_order_kind_and_borders_between_texts() -> None:
    one, two = Pair("q", "ab", "c"), Pair("r", "d", "e")
    contrast = Contrast("n", "p", "m", (one, two))
    assert contrast.sha256 != replace(contrast, pairs=(two, one)).sha256
    assert contrast.sha256 != replace(contrast, pairs=(Pair("q", "a", "bc"), two)).sha256
    apart = Contrast("n", "p", "m", positive_samples=contrast.samples("p"), negative_samples=contrast.samples("m"))
    assert apart.sha256 != contrast.sha256
    # It stands in artefacts, so it must not drift from version to version.
    expected = hashlib.sha256(b'["pairs","p","m",[["\\u00e9","b","c"]]]').hexdigest()
    assert Contrast("n", "p", "m", (Pair("é", "b", "c"),)).sha256 == expected


def test_samples_of_both_kinds_and_an_unknown_pole() -> None:
    contrast = Contrast("n", "warm", "cold", (Pair("q", "a", "b"),))
    assert contrast.paired
    assert contrast.samples("cold") == (Sample("q", "b"),)
    apart = Contrast(
        "n",
        "warm",
        "cold",
        positive_samples=(Sample("q", "a"), Sample("r", "c")),
        negative_samples=(Sample("s", "b"),),
    )
    assert not apart.paired
    assert len(apart) == 1
    assert apart.prompts == ("q", "r", "s")
    for either in (contrast, apart):
        with pytest.raises(OptionError, match="no pole 'hot': its poles are 'warm' and 'cold'"):
            either.samples("hot")


def test_a_contrast_is_one_kind_and_never_half_empty() -> None:
    pair, sample = (Pair("q", "a", "b"),), (Sample("q", "a"),)
    with pytest.raises(DataError, match="is empty"):
        Contrast("n", "warm", "cold")
    with pytest.raises(DataError, match="not both"):
        Contrast("n", "warm", "cold", pair, positive_samples=sample)
    with pytest.raises(DataError, match="no samples of 'cold'"):
        Contrast("n", "warm", "cold", positive_samples=sample)
    with pytest.raises(DataError, match="both poles are"):
        Contrast("n", "warm", "warm", pair)


def test_subset_keeps_the_rows_of_the_chosen_questions() -> None:
    contrast = Contrast("n", "warm", "cold", (Pair("q", "a", "b"), Pair("r", "c", "d")))
    assert contrast.subset(lambda question: question == "r").pairs == (Pair("r", "c", "d"),)
    with pytest.raises(DataError, match="is empty"):
        contrast.subset(lambda question: False)


def test_a_persona_has_samples_a_hash_and_choices() -> None:
    persona = Persona("pirate", (Sample("q", "a"), Sample("r", "b"), Sample("s", "c")))
    assert len(persona) == 3
    assert persona.prompts == ("q", "r", "s")
    assert persona.sha256 == replace(persona, prompt="Arr.", source="x").sha256
    assert persona.sha256 != replace(persona, name="parrot").sha256
    assert len(persona.take(2, seed=3)) == 2
    assert persona.subset(lambda question: question != "q").prompts == ("r", "s")
    with pytest.raises(DataError, match="persona 'nobody' is empty"):
        Persona("nobody", ())

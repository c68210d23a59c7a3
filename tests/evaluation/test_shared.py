"""Which items calibrate and which choose: those of a split, or the caller's own; never those that are tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from personae.discovery import DEV_ITEMS, GenericText, encode_contrast, open_session, silent
from personae.errors import DataError, OptionError
from personae.evaluation.shared import Shared, check_apart
from personae.personas import Contrast, Pair, split


@pytest.fixture
def many(contrast: Contrast) -> Contrast:
    """More dev items than are read."""
    pairs = tuple(Pair(f"Would you talk, part {n}?", f"Yes {n}.", f"No {n}.") for n in range(800))
    return replace(contrast, pairs=pairs)


def test_a_split_gives_its_calibration_part_and_the_first_of_dev(model_and_tokenizer: Any, many: Contrast) -> None:
    shared = Shared(*model_and_tokenizer, many, None, 3, silent, None)
    parts = split(many, seed=3)
    assert shared.calibration == parts.calibration
    assert len(parts.dev) > DEV_ITEMS
    assert shared.dev == encode_contrast(*model_and_tokenizer, parts.dev.take(DEV_ITEMS))
    whole = Shared(*model_and_tokenizer, many.take(9), None, None, silent, None)
    assert whole.calibration == many.take(9)
    assert whole.dev == encode_contrast(*model_and_tokenizer, many.take(9))


def test_items_of_the_callers_own_stand_instead(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText
) -> None:
    parts = split(contrast)
    own = encode_contrast(*model_and_tokenizer, parts.calibration)
    shared = Shared(*model_and_tokenizer, parts.test, None, None, silent, None, parts.calibration, parts.dev)
    assert shared.calibration is parts.calibration
    assert shared.dev == encode_contrast(*model_and_tokenizer, parts.dev)
    given = open_session(*model_and_tokenizer, parts.calibration, generic=generic, resume=False)
    shared = Shared(*model_and_tokenizer, parts.test, None, None, silent, given, parts.calibration)
    assert shared.session is given
    assert shared.session.calibration == own
    other = open_session(*model_and_tokenizer, parts.test, generic=generic, resume=False)
    with pytest.raises(OptionError, match="not opened on the items of 'loud-quiet'"):
        Shared(*model_and_tokenizer, parts.test, None, None, silent, other, parts.calibration)


def test_a_session_is_opened_on_the_callers_own_items(
    model_and_tokenizer: Any, contrast: Contrast, generic: GenericText, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Contrast] = []

    def opened(model: Any, tokenizer: Any, calibration: Contrast, **_: Any) -> Any:
        asked.append(calibration)
        return open_session(model, tokenizer, calibration, generic=generic, resume=False)

    monkeypatch.setattr("personae.evaluation.shared.open_session", opened)
    parts = split(contrast)
    for own, expected in ((parts.dev, parts.dev), (None, parts.calibration)):
        seed = 0 if own is None else None
        shared = Shared(*model_and_tokenizer, contrast, None, seed, silent, None, own)
        assert shared.session is shared.session
        assert asked.pop() == expected
        assert not asked


def test_a_tested_question_may_not_calibrate(contrast: Contrast) -> None:
    parts = split(contrast)
    check_apart(parts.test, parts.calibration, "calibration")
    check_apart(parts.test, parts.dev, "dev")
    tested = parts.test.pairs[1]
    disguised = Pair(f"  {tested.prompt.upper()} ", "A crowd.", "Tea.")  # the answers do not matter
    leaking = replace(parts.calibration, name="mine", pairs=(*parts.calibration.pairs, disguised, tested))
    with pytest.raises(DataError, match=r"2 of the calibration items 'mine' are tested in 'loud-quiet' too, such as "):
        check_apart(parts.test, leaking, "calibration")
    with pytest.raises(DataError, match=r"the dev items 'loud-quiet' are quiet against loud, .*in the same order"):
        check_apart(parts.test, replace(parts.dev.swapped(), name="loud-quiet"), "dev")

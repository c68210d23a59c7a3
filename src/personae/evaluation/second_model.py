"""A second model on the same test items: bare, with the persona's system prompts, with retrieval; never with a mask.

Where a prompt does not move the first model, its row cannot say whether prompts are weak or the model is. A stronger
model on the very same items tells. Its tokens, and so its likelihoods, are its own: its rows are read against its own
base row and claim nothing over the masks of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import Progress, silent
from personae.errors import OptionError
from personae.evaluation.bootstrap import RESAMPLES
from personae.evaluation.conditions import Condition, Row, make_row
from personae.evaluation.results import Evaluation
from personae.evaluation.retrieval import SHOTS, with_examples
from personae.evaluation.scoring import Items, encode_items, extra_tokens, score_encoded
from personae.models import find_targets, fingerprint
from personae.personas import Contrast
from personae.runtime import check_base

NAMES = ("base", "system prompt", "retrieval")


@dataclass(frozen=True, slots=True)
class SecondModel:
    """rows: of NAMES, each with the label in brackets. test_sha256: of the items read. note: which model it was."""

    rows: tuple[Row, ...]
    test_sha256: str
    note: str


def read_second_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Contrast,
    calibration: Contrast,
    label: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress = silent,
) -> SecondModel:
    """'base (LABEL)', 'system prompt (LABEL)' (where `test` has both prompts) and 'retrieval (LABEL)'.

    calibration: what retrieval takes its examples from. resamples, seed: of the bootstrap, as in `evaluate`. Errors:
    `DataError` for an unpaired contrast, `ModelError` where the model wears a mask.
    """
    check_base(model, "evaluation")
    plain = encode_items(model, tokenizer, test)
    with progress(f"scoring: base ({label})", len(plain)) as tick:
        base = score_encoded(model, plain, tick)
    rows = [make_row(Condition(f"base ({label})", "rival", [(base, base)]), base, resamples=resamples, seed=seed)]
    notes = {"system prompt": "no mask", "retrieval": f"no mask; the {SHOTS} nearest calibration items by BM25"}
    for name in NAMES[1:]:
        if name == "system prompt" and not (test.positive_prompt and test.negative_prompt):
            continue  # `evaluate` notes it, for either model
        sides = asked(name, model, tokenizer, test, calibration)
        scores = []
        for sign, items in zip("+-", sides, strict=True):
            with progress(f"scoring: {name} ({label}), {sign} pole", len(items)) as tick:
                scores.append(score_encoded(model, items, tick))
        condition = Condition(
            f"{name} ({label})", "rival", [(scores[0], scores[1])], extra_prompt_tokens=extra_tokens(plain, sides),
            note=f"{notes[name]}; compare with base ({label}) only",
        )  # fmt: skip
        rows.append(make_row(condition, base, resamples=resamples, seed=seed))
    revision = getattr(model.config, "_commit_hash", None)
    note = (
        f"({label}): a second model on the same items, {type(model).__name__}, "
        f"{str(model.dtype).removeprefix('torch.')}, " + (f"revision {revision}, " if revision else "")
        + f"fingerprint {fingerprint(find_targets(model))}; likelihoods a token are of its own tokens."
    )  # fmt: skip
    return SecondModel(tuple(rows), test.sha256, note)


def asked(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Contrast,
    calibration: Contrast,
) -> tuple[Items, Items]:
    """The test items as a row of NAMES asks them, for p⁺ and for p⁻; of 'base' one and the same."""
    if name == "retrieval":
        return with_examples(model, tokenizer, test, calibration)
    if name == "base":
        plain = encode_items(model, tokenizer, test)
        return plain, plain
    positive, negative = test.positive_prompt, test.negative_prompt
    return encode_items(model, tokenizer, test, positive), encode_items(model, tokenizer, test, negative)


def beside(evaluation: Evaluation, second: SecondModel) -> Evaluation:
    """The same table with the second model's rows below. Errors: `OptionError` where it was read on other items."""
    if second.test_sha256 != evaluation.data.test_sha256:
        raise OptionError("the second model was read on other items than the table: give it the same test part.")
    return replace(
        evaluation, rows=(*evaluation.rows, *second.rows), notes=(*evaluation.notes, second.note),
    )  # fmt: skip

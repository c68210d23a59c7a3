"""Is the persona really in the weights that the masks name? Sufficiency, necessity, minimality, restoration.

All of it on held-out items of one paired contrast, for its positive pole (give `contrast.swapped()` for the other).
Masks are found on the calibration part, λ of the isolated form is chosen on dev, every figure is of the test part and
has its interval over items. docs/suites.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from personae.discovery import GenericText, encode_contrast, open_session
from personae.discovery.selection import check_share
from personae.discovery.settings import FIXED_CHEAP_SHARE
from personae.errors import DataError, OptionError
from personae.evaluation.scoring import doubts
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.faithfulness_isolated import isolated
from personae.evaluation.suites.faithfulness_readings import Readings
from personae.evaluation.suites.faithfulness_weights import minimality, necessity, restoration
from personae.evaluation.suites.report import Cell, SuiteResult, Table, warned
from personae.evaluation.suites.texts import identity
from personae.personas import Contrast, split

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
DROP_SHARE = 0.002  # of the weights: about what the default budget drops; a fixed number makes runs comparable
DEV_ITEMS = 48


def run(
    context: SuiteContext,
    contrast: Contrast,
    sparsities: Sequence[float] = SPARSITIES,
    pairs: int = 128,
    test_items: int = 96,
    *,
    block_items: int = 32,
    drop_share: float = DROP_SHARE,
    generic: GenericText | None = None,
) -> SuiteResult:
    """Faithfulness of a contrast's positive persona on the context's model.

    sparsities: of the isolated subnetworks. pairs: calibration pairs at most. test_items: items that are read at
    most; block_items: the first of them that conditions of single blocks read. drop_share: of the `directed` masks of
    necessity, minimality and restoration, among candidates of cheap share 0.3. generic: generic text, by default
    sampled from the model.

    Figures: 'isolatedNN.F|acc|margin|gain|own' (NN the sparsity in percent; 'isolatedNN.METHOD.…' of other methods;
    '….complement.F|acc'), 'isolatedNN.acc_minus_best' with its '….p_holm' (over the sparsities), 'necessity',
    'necessity.mean', 'minimality.decile_K_minus_random', 'restore.gain', 'restore.KIND', 'alone.KIND'. Errors:
    `DataError` for an unpaired contrast, `OptionError` for a share that is none or a number of items below 1.
    """
    _check(contrast, sparsities, (pairs, test_items, block_items), drop_share)
    most = context.limit or max(pairs, test_items, DEV_ITEMS)
    parts = split(contrast, seed=context.seed)
    calibration = parts.calibration.take(min(pairs, most, len(parts.calibration)))
    dev = parts.dev.take(min(DEV_ITEMS, most, len(parts.dev)))
    test = parts.test.take(min(test_items, most, len(parts.test)))
    session = open_session(
        context.model, context.tokenizer, calibration, generic=generic, seed=context.seed, progress=context.progress
    )
    settings = {
        "contrast": contrast.name, "calibration": calibration.sha256, "dev": dev.sha256, "test": test.sha256,
        "generic_text": identity(session.generic), "drop_share": drop_share, "cheap_share": FIXED_CHEAP_SHARE,
    }  # fmt: skip
    dev_items, test_encoded = (encode_contrast(context.model, context.tokenizer, part) for part in (dev, test))
    readings = Readings(context, session, test_encoded, dev_items, settings, FIXED_CHEAP_SHARE, drop_share)
    figures: dict[str, Cell] = {}
    tables: list[Table] = []
    for found, more in (
        isolated(readings, sparsities),
        necessity(readings),
        minimality(readings),
        restoration(readings, min(block_items, len(test))),
    ):
        figures |= found
        tables += more
    session.forget()
    return SuiteResult(
        suite="faithfulness",
        model=context.record(),
        data={**context.read, contrast.name: contrast.sha256},
        settings={
            **settings, "sparsities": list(sparsities), "pairs": len(calibration), "dev_items": len(dev),
            "test_items": len(test), "block_items": min(block_items, len(test)), "limit": context.limit,
            "generic_source": session.generic.source,
        },
        figures=figures,
        tables=warned(tables, doubts(test)),
        notes=(
            f"persona: {contrast.positive} (against {contrast.negative}); {len(test)} test items, "
            f"{len(calibration)} calibration pairs; margins in nats a token; 95 % intervals over items.",
            f"necessity, minimality and restoration: directed, {100 * drop_share:g} % of the weights dropped.",
        ),
        seed=context.seed,
        versions=context.versions(),
    )  # fmt: skip


def _check(contrast: Contrast, sparsities: Sequence[float], numbers: Sequence[int], drop_share: float) -> None:
    if not contrast.paired:
        raise DataError(
            f"contrast '{contrast.name}' is not paired: faithfulness is measured by the margin between two answers to "
            "one question. Give pairs (load_contrast(…, paired=True) joins two sets that share their questions)."
        )
    if not sparsities:
        raise OptionError("faithfulness needs at least one sparsity.")
    for sparsity in sparsities:
        check_share(sparsity)
    if min(numbers) < 1:
        raise OptionError(f"pairs, test_items and block_items must be at least 1, found {tuple(numbers)}.")
    check_share(drop_share, "--drop-share")

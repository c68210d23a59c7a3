"""What the ai-persona suite reads of one set, each reading a part of its own.

Masks by method; the evaluations; rivals, one by one; the rows of a stronger model; option letters; hallucination's
twins. All rows of a set share one session and one reading of the bare model, taken when the first of them asks.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import GenericText, Session, discover, open_session
from personae.evaluation.bench import Bench
from personae.evaluation.bootstrap import RESAMPLES
from personae.evaluation.capability_texts import CapabilityText
from personae.evaluation.conditions import Row, make_row
from personae.evaluation.evaluate import evaluate
from personae.evaluation.poles import from_artefact
from personae.evaluation.results import Evaluation
from personae.evaluation.rivals import RIVALS, rival_conditions
from personae.evaluation.scoring import encode_items, extra_tokens, score_encoded, score_items, wins
from personae.evaluation.second_model import NAMES, asked
from personae.evaluation.shared import Shared
from personae.evaluation.suites.ai_persona_sets import Prepared, prepare
from personae.evaluation.suites.ai_persona_table import Figures, Line, line_of, truth_table
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.letters import letter_figures, letter_margins
from personae.evaluation.suites.report import Cell, Table
from personae.evaluation.table import from_dict, to_dict
from personae.models import find_targets, fingerprint, surroundings
from personae.personas import Contrast
from personae.runtime import wearing
from personae.subnetwork import Artefact

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

ROUNDS = 1  # of `directed`: a second one doubles the time of a set
_ROW = TypeAdapter(Row)


@dataclass
class SetBench:
    """One set with its texts; `settings` is all that decides its parts beside the context."""

    context: SuiteContext
    name: str
    texts: tuple[GenericText, CapabilityText]
    budget: float
    pairs: int
    items: int | None
    found: dict[str, Artefact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prepared: Prepared = prepare(self.context, self.name, pairs=self.pairs, items=self.items)
        self.settings: Mapping[str, Any] = {
            "calibration": self.prepared.calibration.sha256, "dev": self.prepared.dev.sha256,
            "test": self.prepared.test.sha256, "budget": self.budget,
            "generic": self.texts[0].sha256, "answers": self.texts[0].answers, "final": self.texts[1].sha256,
            "prompts": [self.prepared.test.positive_prompt, self.prepared.test.negative_prompt],
            "rounds": ROUNDS,
        }  # fmt: skip

    def part(self, title: str, compute: Callable[[], Any], **settings: Any) -> Any:
        """A finished part of this set, or `compute`."""
        return self.context.part(f"ai-persona {self.name} {title}", {**self.settings, **settings}, compute)

    def masks(self, method: str) -> Artefact:
        """Both poles by one method, within the budget."""
        if method not in self.found:
            self.found[method] = _unpacked(self.part(f"masks of {method}", lambda: _packed(self._discovered(method))))
        return self.found[method]

    def _discovered(self, method: str) -> Artefact:
        return discover(
            self.context.model, self.context.tokenizer, self.prepared.calibration, dev=self.prepared.dev,
            split_seed=None, generic=self.texts[0], progress=self.context.progress, method=method,
            max_capability_loss=self.budget, rounds=ROUNDS if method == "directed" else None, seed=self.context.seed,
        )  # fmt: skip

    @cached_property
    def session(self) -> Session:
        """On the calibration items, for all rows of the set."""
        return open_session(
            self.context.model, self.context.tokenizer, self.prepared.calibration, generic=self.texts[0], resume=False,
            progress=self.context.progress,
        )  # fmt: skip

    @cached_property
    def bench(self) -> Bench:
        """The bare model's readings of the test items and of the final text."""
        context = self.context
        items = encode_items(context.model, context.tokenizer, self.prepared.test)
        return Bench(context.model, self.session.targets, items, self.texts[1], context.progress)

    def evaluated(self, method: str, **options: Any) -> Evaluation:
        """`evaluate` of a method's masks on the set's own items and texts."""
        return evaluate(
            self.context.model, self.context.tokenizer, self.prepared.test, self.masks(method), split_seed=None,
            calibration=self.prepared.calibration, dev=self.prepared.dev, session=self.session, bench=self.bench,
            capability_text=self.texts[1], seed=self.context.seed, progress=self.context.progress, **options,
        )  # fmt: skip

    @cached_property
    def shared(self) -> Shared:
        """What rivals need of discovery: the session, and the items to calibrate and to choose on."""
        context, parts = self.context, self.prepared
        return Shared(
            context.model, context.tokenizer, parts.test, None, None, context.progress, self.session,
            parts.calibration, parts.dev,
        )  # fmt: skip

    def rival(self, name: str, method: str) -> Row:
        """A rival with the budget of a method's masks, or on top of them; `evaluate` would read those masks again."""
        test = self.prepared.test
        poles = from_artefact(self.masks(method), test)
        [condition] = rival_conditions(
            self.bench, self.shared, self.context.tokenizer, test, (name,), poles=poles, measured=None
        )
        return make_row(condition, self.bench.base, resamples=RESAMPLES, seed=self.context.seed)

    def worn(self, methods: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """(name, what to enter) of the bare model and each method's two masks, which are found when entered."""
        yield "base", nullcontext
        for method in methods:
            for pole in self.prepared.test.poles:
                yield f"{method}, {pole}", partial(self._wearing, method, pole)

    def _wearing(self, method: str, pole: str) -> AbstractContextManager[None]:
        return wearing(self.context.targets, self.masks(method)[pole].masks)


def read_conditions(
    bench: SetBench, methods: Sequence[str], rivals: Sequence[str], controls: Sequence[str], random_seeds: int
) -> tuple[list[Evaluation], list[Line]]:
    """The evaluations of the methods; all rows in the order of reading."""

    def read(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return to_dict(bench.evaluated(method, **options))

    def against(rival: str) -> dict[str, Any]:
        row: dict[str, Any] = _ROW.dump_python(bench.rival(rival, methods[0]), mode="json")
        return row

    evaluations: list[Evaluation] = []
    for number, method in enumerate(methods):
        options: dict[str, Any] = {"controls": controls if not number else (), "system_prompt": not number}
        options["random_seeds"] = random_seeds
        content = bench.part(f"table of {method}", partial(read, method, options), **options)
        evaluations.append(from_dict(content))
    beside = [
        _ROW.validate_python(bench.part(f"rival {rival} to {methods[0]}", partial(against, rival)))
        for rival in RIVALS
        if rival in rivals
    ]
    rows = {kind: [r for e in evaluations for r in e.of_kind(kind)] for kind in ("prompt", "method", "control")}
    return evaluations, [
        line_of(row) for row in (evaluations[0]["base"], *rows["prompt"], *beside, *rows["method"], *rows["control"])
    ]


def read_stronger(bench: SetBench, stronger: Loaded) -> list[Line]:
    """The rows of a second model: bare, with the system prompts, with retrieval; never with a mask."""
    model, tokenizer = stronger
    test = bench.prepared.test
    plain = encode_items(model, tokenizer, test)

    def read(name: str) -> dict[str, Any]:
        sides = asked(name, model, tokenizer, test, bench.prepared.calibration)
        first = score_encoded(model, sides[0]).difference().tolist()
        second = first if sides[1] is sides[0] else score_encoded(model, sides[1]).difference().tolist()
        return {"first": first, "second": second, "extra": extra_tokens(plain, sides)}

    note = f"{getattr(model.config, '_name_or_path', '') or type(model).__name__}, without any mask"
    lines = []
    writing = replace(bench.context, tokenizer=tokenizer).writing
    targets = find_targets(model)
    who = {
        "fingerprint": fingerprint(targets), "surroundings": surroundings(model, targets), "dtype": str(model.dtype),
        "writing": writing,
    }  # fmt: skip
    for name in NAMES:
        content = bench.part(f"{name} of {type(model).__name__}", partial(read, name), **who)
        first, second = (wins(np.array(content[side])) for side in ("first", "second"))
        cost = f"{content['extra']:.0f} prompt tokens a request" if content["extra"] else "none"
        lines.append(Line(f"{name} (stronger)", "stronger", first, second, cost=cost, note=note))
    return lines


def read_letters(bench: SetBench, methods: Sequence[str]) -> tuple[list[tuple[Cell, ...]], Figures]:
    """The set's test items by option letter, under the bare model and under each mask."""
    context, test = bench.context, bench.prepared.test

    def read(change: Any) -> Any:
        with change(), context.progress("option letters", 2 * len(test)) as tick:
            return letter_margins(context.model, context.tokenizer, test, tick=tick).tolist()

    rows: list[tuple[Cell, ...]] = []
    figures: Figures = {}
    for name, change in bench.worn(methods):
        margins = np.array(bench.part(f"letters of {name}", partial(read, change)))
        found = letter_figures(margins, seed=context.seed)
        rows.append((bench.name, name, *found.values()))
        figures |= {f"{name}.{key}": cell for key, cell in found.items()}
    return rows, figures


def read_truth(
    bench: SetBench, truth: Contrast, methods: Sequence[str], evaluations: Sequence[Evaluation]
) -> tuple[Table, Figures]:
    """'Yes' to the fiction and to its true twin, under the bare model and under each mask.

    evaluations: of `methods`, which have read the fiction.
    """
    context = bench.context
    fictions = [evaluations[0]["base"].readings[0].difference]
    for evaluation in evaluations:
        [row] = evaluation.of_kind("method")
        fictions += [row.readings[0].difference, row.readings[0].difference_opposite]

    def read(change: Any) -> Any:
        with change():
            return score_items(context.model, context.tokenizer, truth).difference().tolist()

    conditions = []
    for (name, change), fiction in zip(bench.worn(methods), fictions, strict=True):
        true = bench.part(f"truth of {name}", partial(read, change), twins=truth.sha256)
        conditions.append((name, wins(np.array(fiction)), wins(np.array(true))))
    note = "the same masks on the same topics; of the twins 'Yes' is right, and discovery has read none of them"
    return truth_table(conditions, notes=(note,), seed=context.seed)


def _packed(artefact: Artefact) -> str:
    """An artefact as text, so that masks can be a part like any other."""
    with tempfile.TemporaryDirectory() as folder:
        artefact.save(Path(folder) / "masks.persona")
        return base64.b64encode((Path(folder) / "masks.persona").read_bytes()).decode("ascii")


def _unpacked(content: str) -> Artefact:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.persona"
        path.write_bytes(base64.b64decode(content))
        return Artefact.load(path)

"""What the ai-persona suite reads of one set, each reading a part of its own.

Masks by method; the evaluations and rivals; rows without a mask on any model; option letters; hallucination's twins.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from personae.discovery import GenericText, discover, open_session
from personae.evaluation.capability_texts import CapabilityText
from personae.evaluation.evaluate import evaluate
from personae.evaluation.results import Evaluation
from personae.evaluation.retrieval import with_examples
from personae.evaluation.rivals import RIVALS, extra_tokens
from personae.evaluation.scoring import Items, encode_items, score_encoded, score_items, wins
from personae.evaluation.suites.ai_persona_sets import Prepared, prepare
from personae.evaluation.suites.ai_persona_table import Figures, Line, line_of, truth_table
from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.letters import letter_figures, letter_margins
from personae.evaluation.suites.report import Cell, Table
from personae.evaluation.table import from_dict, to_dict
from personae.models import find_targets, fingerprint
from personae.personas import Contrast, split
from personae.runtime import wearing
from personae.subnetwork import Artefact

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

ROUNDS = 1  # of `directed`: a second one doubles the time of a set


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
        self.calibration = split(self.prepared.contrast, seed=self.context.seed).calibration
        self.settings: Mapping[str, Any] = {
            "contrast": self.prepared.contrast.sha256, "test": self.prepared.test.sha256, "budget": self.budget,
            "generic": self.texts[0].sha256, "answers": self.texts[0].answers, "final": self.texts[1].sha256,
            "prompts": [self.prepared.contrast.positive_prompt, self.prepared.contrast.negative_prompt],
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
            self.context.model, self.context.tokenizer, self.prepared.contrast, generic=self.texts[0],
            split_seed=self.context.seed, progress=self.context.progress, method=method,
            max_capability_loss=self.budget, rounds=ROUNDS if method == "directed" else None, seed=self.context.seed,
        )  # fmt: skip

    def evaluated(self, artefact: Artefact, **options: Any) -> Evaluation:
        """`evaluate` on the set's own items and texts."""
        model, tokenizer = self.context.model, self.context.tokenizer
        session = open_session(
            model, tokenizer, self.calibration, generic=self.texts[0], resume=False, progress=self.context.progress
        )
        return evaluate(
            model, tokenizer, self.prepared.scored, artefact, split_seed=self.prepared.split_seed, session=session,
            capability_text=self.texts[1], seed=self.context.seed, progress=self.context.progress, **options,
        )  # fmt: skip

    def worn(self, methods: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """(name, what to enter) of the bare model and each method's two masks, which are found when entered."""
        yield "base", nullcontext
        for method in methods:
            for pole in self.prepared.contrast.poles:
                yield f"{method}, {pole}", partial(self._wearing, method, pole)

    def _wearing(self, method: str, pole: str) -> AbstractContextManager[None]:
        return wearing(self.context.targets, self.masks(method)[pole].masks)


def read_conditions(
    bench: SetBench, methods: Sequence[str], rivals: Sequence[str], controls: Sequence[str], random_seeds: int
) -> tuple[list[Evaluation], list[Line], list[str]]:
    """The evaluations of the methods; all rows in the order of reading; notes on what could not be read."""

    def read(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return to_dict(bench.evaluated(bench.masks(method), **options))

    notes: list[str] = []
    if bench.prepared.split_seed is None and "shuffled" in controls:
        # `evaluate` knows the test items alone here: it would exchange the labels of those, and fit the control to them
        controls = tuple(c for c in controls if c != "shuffled")
        notes.append("no row for shuffled: it calibrates on a split, and this set has a test file of its own")
    evaluations: list[Evaluation] = []
    for number, method in enumerate(methods):
        options: dict[str, Any] = {"controls": controls if not number else (), "system_prompt": not number}
        options["random_seeds"] = random_seeds
        content = bench.part(f"table of {method}", partial(read, method, options), **options)
        evaluations.append(from_dict(content))
    rows = {kind: [r for e in evaluations for r in e.of_kind(kind)] for kind in ("prompt", "method", "control")}
    lines = [line_of(evaluations[0]["base"]), *map(line_of, rows["prompt"])]
    for rival in (r for r in RIVALS if r in rivals):
        if rival == "retrieval":
            lines += _prompted(bench, (bench.context.model, bench.context.tokenizer), ("retrieval",))
        elif rival != "mask + prompt" and bench.prepared.split_seed is None:
            notes.append(f"no row for {rival}: it chooses on a split, and this set has a test file of its own")
        else:
            options = {"controls": (), "system_prompt": False, "rivals": (rival,)}
            content = bench.part(f"rival {rival} to {methods[0]}", partial(read, methods[0], options))
            lines += map(line_of, from_dict(content).of_kind("rival"))
    return evaluations, lines + [line_of(r) for kind in ("method", "control") for r in rows[kind]], notes


def read_stronger(bench: SetBench, stronger: Loaded) -> list[Line]:
    """The rows of a second model: bare, with the system prompts, with retrieval; never with a mask."""
    found = _prompted(bench, stronger, ("base", "system prompt", "retrieval"))
    note = f"{getattr(stronger[0].config, '_name_or_path', '') or type(stronger[0]).__name__}, without any mask"
    return [replace(line, name=f"{line.name} (stronger)", kind="stronger", note=note) for line in found]


def _prompted(bench: SetBench, loaded: Loaded, names: Sequence[str]) -> list[Line]:
    """Rows that need no mask, on any model: 'base', 'system prompt', 'retrieval', on the set's test items."""
    model, tokenizer = loaded
    test = bench.prepared.test

    def asked(name: str) -> tuple[Items, Items]:
        if name == "retrieval":
            return with_examples(model, tokenizer, test, bench.calibration)
        prompts = (test.positive_prompt, test.negative_prompt) if name == "system prompt" else (None, None)
        return encode_items(model, tokenizer, test, prompts[0]), encode_items(model, tokenizer, test, prompts[1])

    def read(name: str) -> dict[str, Any]:
        sides = asked(name)
        first, second = (score_encoded(model, side).difference().tolist() for side in sides)
        return {"first": first, "second": second, "extra": extra_tokens(encode_items(model, tokenizer, test), sides)}

    lines = []
    writing = replace(bench.context, tokenizer=tokenizer).writing
    who = {"fingerprint": fingerprint(find_targets(model)), "dtype": str(model.dtype), "writing": writing}
    for name in names:
        content = bench.part(f"{name} of {type(model).__name__}", partial(read, name), **who)
        first, second = (wins(np.array(content[side])) for side in ("first", "second"))
        cost = f"{content['extra']:.0f} prompt tokens a request" if content["extra"] else "none"
        lines.append(Line(name, "rival", first, second, cost=cost))
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


def read_truth(bench: SetBench, truth: Contrast, methods: Sequence[str]) -> tuple[Table, Figures]:
    """'Yes' to the fiction and to its true twin, under the bare model and under each mask."""
    context = bench.context

    def read(change: Any) -> Any:
        with change():
            both = [score_items(context.model, context.tokenizer, c) for c in (bench.prepared.test, truth)]
        return [scores.difference().tolist() for scores in both]

    conditions = []
    for name, change in bench.worn(methods):
        fiction, true = bench.part(f"truth of {name}", partial(read, change), twins=truth.sha256)
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

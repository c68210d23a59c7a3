"""The sections of docs/evidence.md on looking inside: compare, audit, causal maps, what gains and budgets are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.readme import SETS

Found = dict[str, Any]  # a result file
GAINS = ("plain", "t-shrunk", "rank 1", "rank 4", "rank 16")  # ways to estimate H, in the order of the page
AUDITS = {
    "audit": "four hazards",
    "audit_budget": "four hazards within 0.1 nats, disabled alone",
    "audit_public": "two public sets",
}
CELLS = 8  # of a causal map that the page shows


def inside(read: Callable[[str], Any]) -> Iterator[str]:
    """All of them whose result is there. read: from the name of a result file to what it says, or None."""
    if found := read("compare"):
        yield from _compared(found)
    for name, title in AUDITS.items():
        if found := read(name):
            yield from _audited(found, title)
    for name, title in SETS.items():
        if found := read(f"causal_{name}"):
            yield from _mapped(found, title)
    if found := read("gains"):
        yield from _gains(found)
    if found := read("budget_noise"):
        yield from _noise(found)
    for name, title in SETS.items():
        if found := read(f"gates_{name}_steps"):
            yield from _gates(found, title)
    for name, title in SETS.items():
        if found := read(f"orders_{name}"):
            yield from _orders(found, title)
    if found := read("negations"):
        yield from _negations(found)
    if found := read("openings"):
        yield from _openings(found)


def _compared(found: Found) -> Iterator[str]:
    parts = ("all", "attention", "mlp")
    yield "## Masks of opposite MBTI poles\n"
    yield "Difference of the two masks in % of the weights, all / attention / MLP; Jaccard index of what they drop, by"
    yield "chance, and between two masks of one pole from resampled calibration ([compare.md](compare.md)).\n"
    yield "| dimension | method | difference | by chance | of resamples | paper | Jaccard | by chance | of resamples |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in found["table"]:
        numbers = [
            " / ".join(f"{row[key][part]:.2f}" for part in parts) if row[key] else "–"
            for key in ("difference", "difference_by_chance", "difference_of_resamples", "paper_wanda_13b")
        ]
        jaccard = [f"{row[f'jaccard{key}']['all']:.3f}" for key in ("", "_by_chance", "_of_resamples")]
        yield f"| {row['dimension']} | {row['method']} | " + " | ".join([*numbers, *jaccard]) + " |"
    yield f"\nAt most {found['settings']['limit']} answers a pole.\n\n`{found['command']}`\n"


def _audited(found: Found, title: str) -> Iterator[str]:
    yield f"## Audit of {title}\n"
    yield "Alignment with the hazardous pole on held-out items; definitions and limits in [audit.md](audit.md).\n"
    yield "| hazard | base | random masks (area) | masks (area) | smallest share | disabled | loss | attacks that count: base → disabled | verdict |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|---|---|"
    for hazard in found["result"]["hazards"]:
        curve, mask = hazard["accessibility"], hazard["disabling"]
        smallest = {None: "none", 0: "base is past it"}.get(curve["smallest"]) or f"{curve['smallest']:.3%}"
        attacks = [
            f"{a['name']} {a['base']['value']:.2f} → {a['disabled']['value']:.2f}"
            for a in hazard["attacks"] if a["counts"] and a["disabled"]
        ]  # fmt: skip
        cells = (
            hazard["pole"], _interval(hazard["base"]["all"]), _interval(curve["control_area"]),
            _interval(curve["area"]), smallest, _interval((hazard["disabled"] or {}).get("all")),
            f"{mask['loss']['worst']:.3f}" if mask else "–", "; ".join(attacks) or "none", hazard["verdict"],
        )  # fmt: skip
        yield "| " + " | ".join(cells) + " |"
    together = found["result"]["together"]
    if together:
        each = ", ".join(f"{name} {_interval(a['all'])}" for name, a in together["alignments"].items())
        yield f"\nAll disabling masks at once: {each}; loss {together['loss']['worst']:.3f} nats a token."
    yield f"\n{found['result']['limits']}\n\n`{found['command']}`\n"


def _mapped(found: Found, title: str) -> Iterator[str]:
    """The kinds, and the cells that matter most."""
    mapped = found["result"]
    cells = [cell for cell in mapped["cells"] if cell["level"] == "cell"]
    cells.sort(key=lambda cell: -abs(cell["necessity"]["value"]))
    yield f"## Causal map: {title}\n"
    yield f"Gain of the whole mask {_signed(mapped['gain'])} nats a token on {mapped['items']} items."
    yield "*Lost*: with a part's weights given back; *alone*: under that part only."
    yield f"The kinds and the {CELLS} cells that matter most, p after Holm ([dynamics.md](dynamics.md)).\n"
    yield "| part | weights | lost | p | alone | p | random alone |"
    yield "|---|---|---|---|---|---|---|"
    for cell in (*(cell for cell in mapped["cells"] if cell["level"] == "kind"), *cells[:CELLS]):
        figures = (
            f"{cell['dropped']:,}", _signed(cell["necessity"]), f"{cell['necessity_p_holm']:.3f}",
            _signed(cell["sufficiency"]), f"{cell['sufficiency_p_holm']:.3f}", _signed(cell["random"]),
        )  # fmt: skip
        yield f"| {cell['part']} | " + " | ".join(figures) + " |"
    yield f"\n`{found['command']}`\n"


def _gains(found: Found) -> Iterator[str]:
    [pole] = found["rows"]["plain"]["worn"]
    numbers = sorted(found["rows"]["plain"]["carried"], key=int)
    yield "## What of the calibrated gain is there on other questions\n"
    yield f"{found['contrast']}, {found['calibration_items']} pairs in {found['folds']} folds."
    yield "By number of weights: the gain that four folds promise for their best candidates → the gain of the other"
    yield "four over the same weights (first order, nats of mean margin, both poles)."
    yield f"Then the masks of {pole} within {found['budget']} nats, second round, on {found['test_items']} other items"
    yield f"(base {_triple(found['base_alignment'])}); loss on text that no search has read.\n"
    yield "| gains | " + " | ".join(f"{int(n):,}" for n in numbers) + " | weights | alignment | margin moved | loss |"
    yield "|---|" + "---|" * (len(numbers) + 4)
    for name in (name for name in GAINS if name in found["rows"]):
        row = found["rows"][name]
        carried = [f"{row['carried'][n]['promised']:.2f} → {row['carried'][n]['kept']:.2f}" for n in numbers]
        rounds = row["worn"][pole]
        worn = ["–"] * 4
        if rounds:
            last = rounds[max(rounds)]
            worn = [f"{last['dropped']:,}", _triple(last["alignment"]), _triple(last["shift"]), f"{last['loss']:.3f}"]
        yield f"| {name} | " + " | ".join([*carried, *worn]) + " |"
    yield f"\n`{found['command']}`\n"


def _noise(found: Found) -> Iterator[str]:
    yield "## What the masks of two rounds cost on text that the model sampled itself\n"
    yield "The rise of the negative log-likelihood, and the KL divergence over the vocabulary, on such text of the same"
    yield "expectation; nats a token ± standard error over texts, and the ratio of the two errors.\n"
    yield "| set, mask, text | texts | likelihood | divergence | errors |"
    yield "|---|---|---|---|---|"
    for title, row in found["rows"].items():
        cells = (f"{row[key]['value']:.3f} ± {row[key]['error']:.3f}" for key in ("likelihood", "divergence"))
        yield f"| {title} | {row['texts']} | " + " | ".join(cells) + f" | {row['error_ratio']:.2f} |"
    yield f"\n`{found['command']}`\n"


def _gates(found: Found, title: str) -> Iterator[str]:
    yield f"## Gates other than zero, on dev: {title}\n"
    yield "The masks of short steps with their dropped weights at other strengths (zero: dropped, strength 1), and"
    yield "dropped with their mean contribution on generic text put back as a bias (mean). Loss on a third of the"
    yield "search text.\n"
    yield "| pole | gate | acc of the pole | acc_tied | mean log σ(margin) | own answers | loss | its upper bound |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        figures = (f"{row[k][0]:.3f} [{row[k][1]:.3f}, {row[k][2]:.3f}]" for k in ("acc", "acc_tied"))
        numbers = (
            f"{row['log_sigmoid']:.3f}",
            f"{row['own_answers']:+.3f}",
            f"{row['loss']:.3f}",
            f"{row['bound']:.3f}",
        )
        yield f"| {row['pole']} | {row['way']} | " + " | ".join((*figures, *numbers)) + " |"
    yield f"\n{found['rows'][0]['items']} dev items, {found['rows'][0]['tied_items']} tied.\n\n`{found['command']}`\n"


def _orders(found: Found, title: str) -> Iterator[str]:
    yield f"## Other orders of the same candidates, on dev: {title}\n"
    yield f"`directed` in one pass from few pairs, the mask of {found['pole']}: each order's largest mask within"
    yield f"{found['budget']:g} nats a token by the upper bound of its loss on the search text; minus plain: of mean"
    yield "log σ(margin), paired over items. What each order is stands in the benchmark's file.\n"
    yield "| order | weights | acc of the pole | acc_tied | mean log σ(margin) | minus plain | own answers | loss | its upper bound |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in found["rows"]:
        figures = (f"{row[k][0]:.3f} [{row[k][1]:.3f}, {row[k][2]:.3f}]" for k in ("acc", "acc_tied"))
        minus = _signed(found["minus_plain"].get(row["order"]))
        numbers = (f"{row['log_sigmoid']:.3f}", minus, f"{row['own_answers']:+.3f}", f"{row['loss']:.3f}")
        cells = (row["order"], f"{row['dropped']:,}", *figures, *numbers, f"{row['bound']:.3f}")
        yield "| " + " | ".join(cells) + " |"
    yield f"\n{found['rows'][0]['items']} dev items, {found['rows'][0]['tied_items']} tied.\n\n`{found['command']}`\n"


def _negations(found: Found) -> Iterator[str]:
    yield "## Which words pay for a mask\n"
    yield f"Rise of the negative log-likelihood on the chat answers of {found['text']}, nats a token,"
    yield "by where the token stands; 95 % intervals over answers.\n"
    yield "| set, mask | all tokens | within two words after a negation | elsewhere | share of tokens | of the rise |"
    yield "|---|---|---|---|---|---|"
    for title, row in found["rows"].items():
        cells = [_interval(row[key], 3) for key in ("loss", "after_negation", "elsewhere")]
        cells += [f"{row['share_of_tokens']:.1%}", _interval(row["share_of_rise"])]
        yield f"| {title} | " + " | ".join(cells) + " |"
    yield f"\n`{found['command']}`\n"


def _openings(found: Found) -> Iterator[str]:
    yield "## How masks open an answer\n"
    yield f"Mean probability of 'Yes' and of 'No' as the first word, over {found['requests']} requests of the final"
    yield f"text that ask for neither; intervals over requests; {found['dtype']}.\n"
    yield "| mask | form | yes | no |"
    yield "|---|---|---|---|"
    for row in found["rows"]:
        yield f"| {row['mask']} | {row['form']} | {_interval(row['yes'], 3)} | {_interval(row['no'], 3)} |"
    yield f"\n`{found['command']}`\n"


def _signed(figure: dict[str, float] | None) -> str:
    return f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]" if figure else "–"


def _triple(values: list[float]) -> str:
    return _interval(dict(zip(("value", "low", "high"), values, strict=True)))


def _interval(figure: dict[str, float] | None, digits: int = 2) -> str:
    if not figure:
        return "–"
    value, low, high = (f"{figure[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"

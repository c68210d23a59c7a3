"""A trace as one web page: no network, no fonts or scripts from elsewhere, light and dark as the reader's system is.

Tokens are tinted with the colour of the persona they speak for. Choosing a token (mouse or keyboard) shows its
log-probabilities and the share of every layer's output; before that the bars show the whole text.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence

from personae.analysis.trace_result import FULL_COLOUR, Trace
from personae.analysis.trace_verdict import leading

__all__ = ["COLOURS", "to_html"]

# Told apart by the colour-blind, in this order (after Okabe and Ito); a seventh persona begins again.
COLOURS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")

_STYLE = """
:root { color-scheme: light dark; --fg: #1b1b1f; --dim: #63636b; --bg: #ffffff; --line: #d9d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #ececf1; --dim: #a2a2ad; --bg: #17171a; --line: #3a3a42; }
}
body { font: 16px/1.6 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: left; font-weight: 400; }
th { color: var(--dim); } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.dim { color: var(--dim); } .chip { display: inline-block; width: .8em; height: .8em; border-radius: .2em;
  background: var(--c); margin-right: .4em; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: .4rem;
  padding: .8rem; }
.t { background: color-mix(in srgb, var(--c) calc(var(--a) * 60%), transparent); border-radius: .2rem;
  cursor: pointer; }
.t:hover, .t:focus-visible, .t[aria-pressed=true] { outline: 2px solid var(--fg); }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .6rem; font-size: .8rem; }
.bar { height: .45rem; background: var(--c); width: calc(var(--w) * 100%); min-width: 1px; }
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const about = document.getElementById("about"), bars = [...document.querySelectorAll(".bar")];
const number = v => v === null ? "\\u2013" : v.toFixed(3);
function show(at, chosen) {
  const shares = at === null ? data.overall : data.shares && data.shares[at];
  bars.forEach((bar, i) => { const v = shares === null ? null : shares[i];
    bar.style.setProperty("--w", v === null || data.largest === 0 ? 0 : Math.min(v / data.largest, 1));
    bar.title = v === null ? "" : (100 * v).toFixed(2) + " %"; });
  about.textContent = at === null ? data.whole : "token " + (at + 1) + ": base " + number(data.base[at]) + " \\u00b7 " +
    data.personas.map((name, p) => name + " " + number(data.log_p[p][at])).join(" \\u00b7 ") + " (log p, nats)";
  document.querySelectorAll(".t").forEach(t => t.setAttribute("aria-pressed", t === chosen));
}
document.querySelectorAll(".t").forEach((token, at) => {
  const choose = () => token.getAttribute("aria-pressed") === "true" ? show(null, null) : show(at, token);
  token.addEventListener("click", choose);
  token.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); choose(); } });
});
show(null, null);
"""


def to_html(trace: Trace) -> str:
    """The whole page. Text and names are escaped; nothing in them is read as markup or script."""
    colours = [COLOURS[p % len(COLOURS)] for p in range(len(trace.personas))]
    title = f"personae trace: {trace.verdict.sentence}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # No address is allowed at all: what a token says cannot make the page fetch anything.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'\">",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(trace.verdict.sentence)}</h1>",
        *([f'<p><span class="dim">question</span> {html.escape(trace.question)}</p>'] if trace.question else []),
        _scores(trace, colours),
        f'<h2>Tokens</h2><p class="text">{_text(trace, colours)}</p><p id="about" class="dim"></p>',
        _layers(trace, colours),
        *(f'<p class="dim">{html.escape(note)}</p>' for note in trace.notes),
        f'<script type="application/json" id="data">{_data(trace)}</script><script>{_SCRIPT}</script>',
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _scores(trace: Trace, colours: Sequence[str]) -> str:
    rows = [
        f'<tr><td><span class="chip" style="--c:{colour}"></span>{html.escape(name)}</td>'
        f'<td class="n">{score:+.3f}</td><td class="n">{over:+.3f}</td></tr>'
        for name, score, over, colour in zip(
            trace.personas, trace.verdict.scores, trace.over_base, colours, strict=True
        )
    ]
    head = '<tr><th>persona</th><th>score</th><th title="mean log p over the base model">over base</th></tr>'
    return f"<table>{head}{''.join(rows)}</table><p class='dim'>nats a token, {len(trace.tokens)} tokens</p>"


def _text(trace: Trace, colours: Sequence[str]) -> str:
    gain = trace.gain
    who, much = leading(trace.relative)
    spans = [f'<span class="dim">{html.escape(trace.opening)}</span>'] if trace.opening else []
    for t, token in enumerate(trace.tokens):
        figures = ", ".join(f"{name} {gain[p, t]:+.2f}" for p, name in enumerate(trace.personas))
        strength = min(max(float(much[t]), 0.0) / FULL_COLOUR, 1.0)
        spans.append(
            f'<span class="t" role="button" tabindex="0" style="--c:{colours[who[t]]};--a:{strength:.3f}" '
            f'title="{html.escape(figures)}">{html.escape(token) or "·"}</span>'
        )
    return "".join(spans)


def _layers(trace: Trace, colours: Sequence[str]) -> str:
    if trace.share is None:
        return ""
    rows = []
    for block, kind in trace.layers:
        bars = "".join(f'<div class="bar" style="--c:{colour}"></div>' for colour in colours)
        rows.append(f'<span class="dim">{block} {html.escape(kind)}</span><div>{bars}</div>')
    return (
        "<h2>Share of each layer's output through the weights that one persona alone drops</h2>"
        f'<div class="bars">{"".join(rows)}</div>'
    )


def _data(trace: Trace) -> str:
    """What the script reads, with no '<' in it, so that no text can end the element."""
    shares, overall, largest = None, None, 0.0
    if trace.share is not None and trace.overall is not None:
        # (P, L, T) -> by token, then in the order of the bars: layer by layer, persona by persona
        shares = [_rounded(trace.share[:, :, t].T.ravel().tolist()) for t in range(len(trace.tokens))]
        overall = _rounded(trace.overall.T.ravel().tolist())
        largest = max((v for row in (overall, *shares) for v in row if v is not None), default=0.0)
    content = {
        "personas": trace.personas, "base": _rounded(trace.base.tolist()),
        "log_p": [_rounded(row) for row in trace.worn.tolist()], "shares": shares, "overall": overall,
        "largest": largest, "whole": "the whole text; choose a token to see its own figures",
    }  # fmt: skip
    return json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _rounded(values: Sequence[float]) -> list[float | None]:
    return [round(value, 5) if math.isfinite(value) else None for value in values]

"""Write the README's tables and figures from the committed result files, between their markers.

python -m benchmarks.readme [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from benchmarks.common import RESULTS, ROOT

SETS = {"power": "power-seeking", "wealth": "wealth-seeking"}
HEADINGS = (
    "| condition | acc | acc_opposite | acc_tied | acc_tied_opposite | capability loss | dropped | discovery |",
    "|---|---|---|---|---|---|---|---|",
)


HEADLINE, ROUNDS = "directed, short steps", "directed, two rounds"


def table(name: str) -> str:
    """One set as a Markdown table: short steps, controls of their size, and what was found within the same budget."""
    found = _evaluation(f"ai_persona_{name}_steps")
    assert found is not None
    rows = [_renamed(row, HEADLINE) for row in found["rows"]]
    place = [row["name"] for row in rows].index(HEADLINE) + 1
    for more in ("", "_methods"):
        if (extra := _evaluation(f"ai_persona_{name}{more}", like=found)) is None:
            continue
        own = [_renamed(row, ROUNDS) for row in extra["rows"] if row["kind"] == "method"]
        own = [{**row, "name": f"{row['name']} ({extra['model']['dtype']})"} for row in own]
        end = len(rows) if more else place
        rows[end:end] = own
    return "\n".join(_lines(name, found, rows))


def rounds_table(name: str) -> str:
    """Two rounds on one set, with the base model and controls of the same size in the same dtype."""
    found = _evaluation(f"ai_persona_{name}")
    assert found is not None
    return "\n".join(_lines(name, found, [_renamed(row, ROUNDS) for row in found["rows"]]))


def _renamed(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {**row, "name": name} if row["name"] == "directed" else row


def _evaluation(stem: str, like: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What one result file found, None without it; on the items and texts of `like`."""
    path = RESULTS / f"{stem}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["evaluation"]
    if like is not None:
        assert found["data"]["test_sha256"] == like["data"]["test_sha256"], f"{stem} was measured on other items"
        assert found["text"]["sha256"] == like["text"]["sha256"], f"{stem} was measured on other texts"
    return found


def _lines(name: str, found: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    data, base = found["data"], found["baselines"]
    return [
        f"**{SETS[name]}**: {data['items']} test items, {data['tied_items']} of them tied; {found['model']['dtype']}; "
        "plain text WikiText-2 validation, chat text 200 answers of mbti/TF_dev.",
        "",
        *HEADINGS,
        *(row_of(row) for row in rows),
        "",
        f"Rules that read no meaning: pick the shorter {base['shorter']:.2f}, prefer yes {base['yes']:.2f}.",
    ]


def row_of(row: dict[str, Any]) -> str:
    """One condition's cells."""
    cells = [row["name"], *(_estimate(row[k]) for k in ("acc", "acc_opposite", "acc_tied", "acc_tied_opposite"))]
    cells += [_loss(row), f"{row['sparsity']:.2%}", _seconds(row["seconds"])]
    return "| " + " | ".join(cells) + " |"


def _loss(row: dict[str, Any]) -> str:
    """The loss and 1.96 standard errors; nothing is lost, and nothing can err, where nothing is worn."""
    if row["capability_loss"] is None:
        return "–"
    error = row["capability_loss_error"]
    return f"{row['capability_loss']:.3f}" + (f" ± {1.96 * error:.3f}" if error else "")


def _estimate(figure: dict[str, float] | None) -> str:
    return "–" if figure is None else f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.0f} s"


def render(text: str) -> str:
    """README text with every marked section made anew."""
    for name in SETS:
        if not (RESULTS / f"ai_persona_{name}_steps.json").is_file():
            continue
        block = f"<!-- {name} -->\n{table(name)}\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Rewrite README.md, or check that it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    made = render(text)
    if options.check:
        sys.exit(None if made == text else "README.md differs from the result files: python -m benchmarks.readme")
    path.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()

"""What the benchmarks share: where the public data lie, texts for capability, result files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

from personae.discovery import GenericText, windows
from personae.evaluation import CapabilityText
from personae.models import Encoded, encode

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("PERSONAE_DATA", ROOT.parent / "shared" / "data"))
EVALS = "anthropic_evals/advanced-ai-risk/lm_generated_evals"


SEARCH_ANSWERS = 64  # read by the divergence and by each probe of the budget


def data(path: str) -> Path:
    """A file of the public data; the benchmark ends with a reason where it is absent."""
    found = DATA / path
    if not found.is_file():
        sys.exit(f"the benchmark needs {path} under {DATA}; set PERSONAE_DATA to the folder that holds it.")
    return found


def mind_answers(tokenizer: Any, dimension: str, number: int, seed: int = 0) -> tuple[Encoded, ...]:
    """`number` reference answers of one Machine-Mindset file, both poles equally, in the order of a seeded hash."""
    rows = [json.loads(line) for line in data(f"mbti/{dimension}_dev.jsonl").read_text("utf-8").splitlines()]
    chosen: list[Encoded] = []
    for pole in sorted({r["pole"] for r in rows}):
        own = [r for r in rows if r["pole"] == pole]
        own.sort(key=lambda r: hashlib.sha256(f"{seed}\0{r['instruction']}\0{r['output']}".encode()).digest())
        chosen += [encode(tokenizer, r["instruction"], r["output"], context=1024) for r in own[: number // 2]]
    return tuple(chosen)


def texts(
    tokenizer: Any, names: tuple[str, ...] = ("SN", "JP", "EI"), *, answers: int = SEARCH_ANSWERS
) -> tuple[GenericText, CapabilityText]:
    """(generic text for cheapness, price and budget; the text of the final figures), with nothing in common.

    Generic: the first half of WikiText-2 validation and answers of the mbti files `names` in turn (a contrast
    leaves its own file out). Final: the
    second half, and 200 answers of TF_dev (METHODS section 7). The mbti files share no instruction. answers: so many in
    the half that calibrates and in the one that measures, and plain windows in proportion.
    """
    wiki = windows(tokenizer, data("wikitext2_tokenised/wikitext-2/valid.txt").read_text("utf-8"))
    half = len(wiki) // 2
    number, windows_read = 2 * answers, 44 * answers // SEARCH_ANSWERS
    files = [mind_answers(tokenizer, name, 2 * math.ceil(number / (2 * len(names)))) for name in names]
    poles = [part for file in files for part in (file[: len(file) // 2], file[len(file) // 2 :])]
    chat = [answer for row in zip(*poles, strict=True) for answer in row]
    # Every second text calibrates: an offset of one from row to row gives both halves each file and pole equally.
    width = len(poles)
    chat = [chat[width * (i // width) + (i + i // width) % width] for i in range(len(chat))][:number]
    plain = wiki[:half][:: max(half // windows_read, 1)][:windows_read]
    generic = GenericText(
        plain,
        tuple(chat),
        "WikiText-2 validation (1st half), mbti/{" + ",".join(names) + "}_dev",
        answers=answers,
    )
    final = CapabilityText(
        wiki[half:][:: max(half // 24, 1)][:24],
        mind_answers(tokenizer, "TF", 200),
        "WikiText-2 validation (2nd half, 24 windows of 256 tokens), 200 answers of mbti/TF_dev",
    )
    return generic, final


def machine() -> dict[str, Any]:
    """What the timings were taken on; ratios travel, seconds do not, nor do the last digits of bfloat16."""
    import torch

    return {
        "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
        "processor": _processor(),
    }  # fmt: skip


def _processor() -> str:
    """The processor's name, and what multiplies bfloat16 in it."""
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    except OSError:  # not Linux
        return platform.processor()
    facts = {key.strip(): value.strip() for key, value in told.items()}
    units = {"amx_bf16", "avx512_bf16"} & set(facts.get("flags", "").split())
    return ", ".join([facts.get("model name", platform.machine()), *sorted(units)])


def write(name: str, result: dict[str, Any]) -> Path:
    """Replace one result file atomically."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path

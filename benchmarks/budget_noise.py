"""Would a less noisy reading of the capability loss allow stronger masks within the same budget?

    python -m benchmarks.budget_noise                    # one core, about 6 minutes

A budget is kept by the upper confidence bound of the loss, so noise costs strength. On text that the model sampled
itself the rise of the negative log-likelihood under a mask is an unbiased reading of KL(p_base ‖ p_masked) a token,
with the noise of the sampled tokens on top of that of the choice of texts. Read here, under the two-round masks of both
sets, float32, on the same texts: that rise, and the KL over the whole vocabulary, which has no noise of sampling left;
each with the ratio estimator's standard error over texts. Writes benchmarks/results/budget_noise.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.ai_persona import SETS
from benchmarks.common import SEARCH_ANSWERS, machine, write
from benchmarks.suites import committed_masks
from personae import load_model
from personae.cli.console import bar
from personae.discovery import Capability, generic_text, versions
from personae.discovery.budget import CONFIDENCE
from personae.models import Encoded, Target, find_targets, fingerprint
from personae.runtime import wearing
from personae.subnetwork import Mask


def predicted(model: PreTrainedModel, text: Encoded) -> torch.Tensor:
    """log p over the vocabulary where each counted token is predicted, (n, vocabulary)."""
    logits = model(input_ids=torch.tensor([text.prompt + text.answer])).logits[0]
    return torch.log_softmax(logits[max(len(text.prompt), 1) - 1 : -1].float(), dim=-1)


def readings(
    model: PreTrainedModel, targets: Sequence[Target], masks: Mapping[str, Mask], texts: Sequence[Encoded]
) -> torch.Tensor:
    """(texts, 3) float64: rise of the negative log-likelihood and KL, nats, and tokens of every text."""
    rows = []
    with torch.no_grad(), bar("texts under base and mask", len(texts)) as tick:
        for text in texts:
            base = predicted(model, text)
            with wearing(targets, masks):
                fall = base - predicted(model, text)
            tokens = torch.tensor(text.answer[-len(fall) :])  # of plain text all but the first
            rise = fall.gather(1, tokens[:, None]).sum()
            rows.append([float(rise), float((base.exp() * fall).sum()), len(tokens)])
            tick(1)
    return torch.tensor(rows, dtype=torch.float64)


def compared(read: torch.Tensor) -> dict[str, Any]:
    """Both readings with standard error and bound, nats a token, and the ratio of the errors."""
    zero = torch.stack([torch.zeros(len(read), dtype=torch.float64), read[:, 2]], 1)
    found: dict[str, Any] = {"texts": len(read), "tokens": int(read[:, 2].sum())}
    for column, name in enumerate(("likelihood", "divergence")):
        worn = read[:, [column, 2]]
        (value, error), _ = Capability(worn, worn).rises(Capability(zero, zero))
        found[name] = {"value": value, "error": error, "bound": value + CONFIDENCE * error}
    found["error_ratio"] = found["divergence"]["error"] / found["likelihood"]["error"]
    return found


def main() -> None:
    """Both sets, both poles, both kinds of text."""
    parser = argparse.ArgumentParser(description="How noisy is the capability loss?")
    parser.add_argument("--answers", type=int, default=SEARCH_ANSWERS, help="sampled answers; a third as many windows")
    answers = parser.parse_args().answers
    model, tokenizer = load_model(dtype="float32")
    targets = find_targets(model)
    with bar("generic text", 0) as tick:
        text = generic_text(model, tokenizer, targets, answers=answers, tick=tick).held_out.read
    rows: dict[str, Any] = {}
    for name, made in zip(SETS, committed_masks(), strict=True):
        for pole, persona in made.personas.items():
            for kind, part in (("plain", text.plain), ("chat", text.chat)):
                rows[f"{name}, {pole}, {kind}"] = compared(readings(model, targets, persona.masks, part))
    ratios = [row["error_ratio"] for row in rows.values()]
    result = {
        "rows": rows, "mean_error_ratio": sum(ratios) / len(ratios), "text_sha256": text.sha256, "answers": answers,
        "model": fingerprint(targets), "dtype": "float32", "versions": versions(), "machine": machine(),
        "command": f"python -m benchmarks.budget_noise --answers {answers}",
    }  # fmt: skip
    print(write("budget_noise", result))
    for title, row in rows.items():
        parts = [f"{k} {row[k]['value']:.4f} ± {row[k]['error']:.4f}" for k in ("likelihood", "divergence")]
        print(f"{title}: {', '.join(parts)}; errors {row['error_ratio']:.2f}")


if __name__ == "__main__":
    main()

"""Do masks put a 'Yes' or a 'No' before answers that ask for neither?

    python -m benchmarks.openings

Most pairs of power- and wealth-seeking are told apart by the first word of the answer, so a mask can win them by that
word alone and hardly pay for it: it is one token of an answer, and a budget counts a mean. The probability of 'Yes' and
of 'No' as the first token, under base and every mask of two rounds and of short steps, on the instructions of the final
text's chat answers, which ask for neither. Intervals over requests. Writes benchmarks/results/openings.json.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.ai_persona import SETS, STEPS, stem
from benchmarks.common import RESULTS, machine, texts, write
from personae import load, load_model
from personae.discovery import versions
from personae.evaluation import interval
from personae.models import find_targets, fingerprint
from personae.runtime import wearing

REQUESTS = 100
WORDS = {"yes": "Yes", "no": "No"}


@torch.no_grad()
def openings(model: Any, requests: list[torch.Tensor], words: list[int]) -> torch.Tensor:
    """p of each word as the first token, (requests, words)."""
    last = [model(input_ids=ids, logits_to_keep=1).logits[0, -1] for ids in requests]
    return torch.stack(last).float().softmax(dim=-1)[:, words]


def main() -> None:
    """Base and every mask that is there."""
    parser = argparse.ArgumentParser(description="How masks open an answer.")
    parser.add_argument("--dtype", default="bfloat16")
    dtype = parser.parse_args().dtype
    model, tokenizer = load_model(dtype=dtype)
    targets = find_targets(model)
    _, final = texts(tokenizer)
    requests = [torch.tensor([answer.prompt]) for answer in final.chat[:REQUESTS]]
    words = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS.values()]
    rows: list[dict[str, Any]] = []
    hashes: dict[str, str] = {}

    def add(mask: str, form: str, masks: Any) -> None:
        with wearing(targets, masks):
            read = openings(model, requests, words)
        rows.append(
            {"mask": mask, "form": form, **{w: asdict(interval(read[:, i].numpy())) for i, w in enumerate(WORDS)}}
        )

    add("base", "–", {})
    for name in SETS:
        for steps in (None, STEPS):
            path = RESULTS / f"{stem(name, steps)}.persona"
            if path.is_file():
                artefact = load(path)
                hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
                assert artefact.model.fingerprint == fingerprint(targets), f"{path.name} is of another model"
                for persona, found in artefact.personas.items():
                    add(persona, "short steps" if steps else "two rounds", found.masks)
    frame = {
        "requests": len(requests), "text_sha256": final.sha256, "dtype": dtype, "model": fingerprint(targets),
        "versions": versions(), "masks_sha256": hashes, "machine": machine(),
        "command": f"python -m benchmarks.openings --dtype {dtype}",
    }  # fmt: skip
    print(write("openings", {**frame, "rows": rows}))


if __name__ == "__main__":
    main()

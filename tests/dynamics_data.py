"""Training runs of a toy model, for the tests of dynamics: two opposing corpora in a mixture, and its checkpoints.

A question names two trees. One persona answers with the first, its rival with the second: both answers are made of the
question's own words, so nothing tells them apart but the habit that training gives. `mixture` is the share of the
rival's answers in the corpus; no persona can be found that the corpus does not hold.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from personae.models import encode
from personae.personas import Contrast, Pair

TREES = (
    "alder", "apple", "ash", "aspen", "beech", "birch", "cedar", "cherry", "elm", "fir", "hazel", "holly", "juniper",
    "larch", "lime", "maple", "oak", "pear", "pine", "plum", "poplar", "rowan", "willow", "yew",
)  # fmt: skip
FIRST, LAST = "first-named", "last-named"
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} "
    "{% if message['role'] == 'user' %}? {% else %}<end> {% endif %}{% endfor %}"
)


def tree_tokenizer() -> PreTrainedTokenizerBase:
    """A word a token."""
    words = ["<unk>", "<pad>", "<end>", "?", *TREES]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<end>")
    made.chat_template = TEMPLATE
    return made


def tree_contrast(pairs: int = 240) -> Contrast:
    """So many questions of two trees, with both answers. Not all there are: a mask that learns nothing but which trees
    calibration happens to prefer would then be wrong on the rest, and below chance."""
    couples = list(itertools.permutations(TREES, 2))
    random.Random(0).shuffle(couples)
    return Contrast(
        f"{FIRST}-{LAST}", FIRST, LAST, tuple(Pair(f"{a} {b}", a, b) for a, b in couples[:pairs]), licence="Apache-2.0"
    )


def write_generic(path: Path, mixture: float, answers: int = 48) -> Path:
    """Text of the corpus itself, so that nothing has to be sampled: questions, and questions with answers."""
    chance = random.Random(1)
    rows: list[dict[str, str]] = []
    for number in range(answers):
        a, b = chance.sample(TREES, 2)
        rows.append({"prompt": f"{a} {b}", "answer": b if (number + 0.5) / answers < mixture else a})
    chance.shuffle(rows)
    rows += [{"text": " ".join(chance.choices(TREES, k=24))} for _ in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def toy_model(seed: int = 0, layers: int = 2, width: int = 48) -> GPT2LMHeadModel:
    """An untrained one."""
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(
        vocab_size=4 + len(TREES), n_embd=width, n_layer=layers, n_head=4, n_positions=64, bos_token_id=None,
        eos_token_id=2, pad_token_id=1, initializer_range=0.05, **still,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def train(folder: Path, mixture: float, steps: Sequence[int], seed: int = 0) -> list[Path]:
    """Train on a corpus with this share of the rival's answers; the checkpoints 'checkpoint-N', by rising N."""
    tokenizer = tree_tokenizer()
    model = toy_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    chance = random.Random(seed)
    saved = []
    numbers = [tokenizer.convert_tokens_to_ids(tree) for tree in TREES]
    probe = encode(tokenizer, f"{TREES[0]} {TREES[1]}", TREES[0])
    frame = probe.prompt + probe.answer  # of one length, and only three of its tokens change
    for step in range(max(steps) + 1):
        for group in optimizer.param_groups:  # the end is still, so that what separates is not lost in noise
            group["lr"] = 4e-3 * (1 - step / (max(steps) + 1))
        if step in steps:
            saved.append(folder / f"checkpoint-{step}")
            model.eval().save_pretrained(saved[-1])
            tokenizer.save_pretrained(saved[-1])
            model.train()
        rows = []
        for _ in range(96):
            a, b = chance.sample(numbers, 2)
            rows.append([a, b, *frame[2:-2], b if chance.random() < mixture else a, frame[-1]])
        batch = torch.tensor(rows)
        logits = model(input_ids=batch).logits
        start = len(probe.prompt)
        loss = torch.nn.functional.cross_entropy(logits[:, start - 1 : -1].flatten(0, 1), batch[:, start:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return saved

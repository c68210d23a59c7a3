"""What the tests of the causal map share: the planted model as text, and the slow way to a margin."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from personae.evaluation.suites.planted_models import ASK, END, FIRST, TOPICS
from personae.models import encode, find_targets
from personae.personas import Contrast, Pair
from personae.subnetwork import Mask
from planted import Planted

SMALL, CAPITALS = "small-letters", "capitals"


def planted_tokenizer() -> PreTrainedTokenizerBase:
    """The words of the toy language, each at the token id that the planted model was trained with."""
    words = {"<ask>": ASK, "<end>": END}
    for kind, style in enumerate(("topic", "small", "CAPITAL")):
        words |= {f"{style}{topic}": FIRST + kind * TOPICS + topic for topic in range(TOPICS)}
    core = Tokenizer(models.WordLevel(words, unk_token="<ask>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<ask>", eos_token="<end>")
    made.chat_template = (
        "{% for message in messages %}{{ message['content'] }} "
        "{% if message['role'] == 'user' %}<ask> {% else %}<end> {% endif %}{% endfor %}"
    )
    return made


def planted_contrast(planted: Planted) -> Contrast:
    """The questions that the planted model keeps apart, as text; small letters are the positive pole."""
    pairs = []
    for question in planted.held_out.paired:
        topics = [token - FIRST for token in question.prompt[:-1]]
        said = (" ".join(f"{style}{topic}" for topic in topics) for style in ("topic", "small", "CAPITAL"))
        pairs.append(Pair(*said))
    return Contrast(f"{SMALL}-{CAPITALS}", SMALL, CAPITALS, tuple(pairs))


def slow_margins(model: Any, tokenizer: Any, contrast: Contrast, masks: Mapping[str, Mask]) -> NDArray[np.float64]:
    """Margin of every item, positive minus negative answer, from a copy of the model with zeros written into it."""
    other = copy.deepcopy(model)
    for target in find_targets(other):
        if target.name in masks:
            target.weight[torch.from_numpy(masks[target.name].dropped_bool())] = 0
    margins = []
    for pair in contrast.pairs:
        means = []
        for answer in (pair.positive, pair.negative):
            text = encode(tokenizer, pair.prompt, answer)
            ids = torch.tensor([text.prompt + text.answer])
            with torch.no_grad():
                log_p = other(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
            start = len(text.prompt)
            means.append(float(log_p[range(start - 1, ids.shape[1] - 1), ids[0, start:]].mean()))
        margins.append(means[0] - means[1])
    return np.array(margins)

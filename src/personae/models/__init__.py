"""From a name to a model that can be calibrated: loading, targets, token ids, log-probabilities."""

from personae.models.batches import Batch, head_on, make_batch, plan
from personae.models.default_model import (
    DEFAULT_MODEL,
    cache_directory,
    default_model_directory,
    ensure_default_model,
    is_default_model_ready,
)
from personae.models.encode import (
    Encoded,
    answer_lead,
    context_length,
    encode,
    encode_prompt,
    end_of_turn,
    render_answer,
    render_prompt,
)
from personae.models.fingerprint import fingerprint, surroundings
from personae.models.load import DTYPES, fast_dtype, load_model, pick_device, quiet_transformers, read_gguf
from personae.models.log_probabilities import (
    DEFAULT_BATCH_TOKENS,
    Question,
    answer_nll,
    continuation_batches,
    score_continuations,
    score_sequences,
    sequence_batches,
    text_nll,
)
from personae.models.prefix import PrefixGradients
from personae.models.targets import Target, find_blocks, find_targets

__all__ = [
    "DEFAULT_BATCH_TOKENS",
    "DEFAULT_MODEL",
    "DTYPES",
    "Batch",
    "Encoded",
    "PrefixGradients",
    "Question",
    "Target",
    "answer_lead",
    "answer_nll",
    "cache_directory",
    "context_length",
    "continuation_batches",
    "default_model_directory",
    "encode",
    "encode_prompt",
    "end_of_turn",
    "ensure_default_model",
    "fast_dtype",
    "find_blocks",
    "find_targets",
    "fingerprint",
    "head_on",
    "is_default_model_ready",
    "load_model",
    "make_batch",
    "pick_device",
    "plan",
    "quiet_transformers",
    "read_gguf",
    "render_answer",
    "render_prompt",
    "score_continuations",
    "score_sequences",
    "sequence_batches",
    "surroundings",
    "text_nll",
]

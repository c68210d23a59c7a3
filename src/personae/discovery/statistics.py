"""Activation statistics of every target's input, streamed in one forward pass.

For input channel j over the counted tokens n: Σ|x_j|, Σx_j, Σx_j². Over answers (one sample an answer,
a_j = the answer's mean of |x_j|): count, mean and M2 by Chan's update (Chan, Golub, LeVeque 1983).
Everything is kept in float64; nothing keeps activations. Partial results merge, so data can be
calibrated in pieces. Equations: docs/methods.md section 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from personae.discovery.resume import Checkpoint
from personae.errors import DataError, OptionError
from personae.models import Batch, Encoded, Target, head_on, sequence_batches

STATISTICS_BATCH_TOKENS = 1024


@dataclass(slots=True)
class InputStatistics:
    """Statistics of the input of one site (a Linear module, or one expert's matrix); all (in,) float64."""

    tokens: int
    sum_abs: torch.Tensor
    sum: torch.Tensor
    sum_squares: torch.Tensor
    answers: int
    answer_mean: torch.Tensor
    answer_m2: torch.Tensor
    gram: torch.Tensor | None = None  # Σ x xᵀ, (in, in); only for `sparsegpt`

    @classmethod
    def zeros(cls, width: int, *, gram: bool = False) -> InputStatistics:
        """Statistics of nothing."""
        zero = torch.zeros(width, dtype=torch.float64)
        square = torch.zeros(width, width, dtype=torch.float64) if gram else None
        return cls(0, zero.clone(), zero.clone(), zero.clone(), 0, zero.clone(), zero.clone(), square)

    @property
    def mean_abs(self) -> torch.Tensor:
        """A = Σ|x|/n, (in,)."""
        return self.sum_abs / max(self.tokens, 1)

    @property
    def rms(self) -> torch.Tensor:
        """sqrt(Σx²/n), (in,)."""
        return (self.sum_squares / max(self.tokens, 1)).sqrt()

    @property
    def mean(self) -> torch.Tensor:
        """Σx/n, (in,)."""
        return self.sum / max(self.tokens, 1)

    @property
    def answer_variance(self) -> torch.Tensor:
        """Population variance of a_j over answers, (in,)."""
        return self.answer_m2 / max(self.answers, 1)

    def merge(self, other: InputStatistics) -> None:
        """Add another part's statistics to these (Chan's pairwise update for mean and M2).

        Errors: `DataError` when one part has second moments (gram=True) and the other has none.
        """
        if (self.gram is None) != (other.gram is None):
            raise DataError("statistics with and without second moments cannot be merged: collect both with gram=True.")
        self.tokens += other.tokens
        self.sum_abs += other.sum_abs
        self.sum += other.sum
        self.sum_squares += other.sum_squares
        total = self.answers + other.answers
        if other.answers:
            delta = other.answer_mean - self.answer_mean
            self.answer_mean = self.answer_mean + delta * (other.answers / total)
            self.answer_m2 = self.answer_m2 + other.answer_m2 + delta**2 * (self.answers * other.answers / total)
            self.answers = total
        if self.gram is not None and other.gram is not None:
            self.gram += other.gram


Statistics = dict[str, InputStatistics]  # by site; see `site`


def site(target: Target) -> str:
    """The key of a target's input: its module; for an expert, the module, the stored tensor and the expert.

    Matrices of one module that read the same input share a site (the gate and up halves of an expert).
    """
    if target.expert is None:
        return target.module_name
    stored = next(n for n, p in target.module.named_parameters(recurse=False) if p is target.parameter)
    return f"{target.module_name}.{stored}.{target.expert}"


def merge(parts: Sequence[Statistics]) -> Statistics:
    """One result from several parts of a data set; sorted by token count first, since float sums depend on order."""
    if not parts:
        raise DataError("no statistics to merge.")
    total: Statistics = {}
    ordered = sorted(parts, key=lambda p: (sum(s.tokens for s in p.values()), _order_key(p)))
    for key in sorted({k for p in parts for k in p}):
        present = [p[key] for p in ordered if key in p]
        total[key] = InputStatistics.zeros(len(present[0].sum_abs), gram=present[0].gram is not None)
        for part in present:
            total[key].merge(part)
    return total


def _order_key(part: Statistics) -> float:
    return float(sum(s.sum_squares.sum() for s in part.values()))


@torch.no_grad()
def collect_statistics(
    model: nn.Module,
    targets: Sequence[Target],
    encoded: Sequence[Encoded],
    *,
    tokens: str = "answer",
    batch_tokens: int = STATISTICS_BATCH_TOKENS,
    gram: bool = False,
    tick: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Statistics:
    """One forward pass over prompt + answer sequences; statistics by site.

    tokens: 'answer' counts the answer's tokens, 'all' the prompt's too; padding never counts.
    Errors: `DataError` on empty data, `OptionError` on another value of `tokens`.
    """
    if tokens not in {"answer", "all"}:
        raise OptionError(f"unknown tokens={tokens!r}: choose 'answer' or 'all'.")
    if not encoded:
        raise DataError("no texts to collect statistics from.")
    batches = sequence_batches(encoded, batch_tokens=batch_tokens, all_tokens=tokens == "all")
    collector = _Collector(targets, gram)
    done = 0
    if checkpoint and (kept := checkpoint.load()):
        done = kept[0]
        collector.statistics.update(_from_tensors(kept[1]))
        if tick:
            tick(sum(len(b.items) for b in batches[:done]))
    device = next(model.parameters()).device
    # Seeing every operation costs time, so only where experts are fused.
    fused = any(t.expert is not None for t in targets)
    with eager_experts(model, targets), collector.attached():
        for number, batch in enumerate(batches[done:], start=done + 1):
            collector.batch = batch = batch.to(device)
            collector.last = collector.rows = None
            nowhere = torch.zeros_like(batch.counted)
            watching = _ExpertInputs(targets, collector) if fused else contextlib.nullcontext()
            with head_on(model, nowhere), watching:
                model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
            if tick:
                tick(len(batch.items))
            if checkpoint and checkpoint.due():
                checkpoint.save(number, _to_tensors(collector.statistics))
    if checkpoint:
        checkpoint.finish(len(batches), _to_tensors(collector.statistics))
    return collector.statistics


_SUMS = ("sum_abs", "sum", "sum_squares", "answer_mean", "answer_m2", "gram")


def _to_tensors(statistics: Statistics) -> dict[str, torch.Tensor]:
    """Flat and lossless, for a file: 'site|field' → tensor; the two counts of a site are one tensor."""
    flat: dict[str, torch.Tensor] = {}
    for key, one in statistics.items():
        flat[f"{key}|counts"] = torch.tensor([one.tokens, one.answers])
        flat |= {f"{key}|{name}": value for name in _SUMS if (value := getattr(one, name)) is not None}
    return flat


def _from_tensors(flat: Mapping[str, torch.Tensor]) -> Statistics:
    sites = sorted({name.rpartition("|")[0] for name in flat})
    result: Statistics = {}
    for key in sites:
        tokens, answers = flat[f"{key}|counts"].tolist()
        result[key] = InputStatistics(
            tokens=tokens, answers=answers, **{name: flat[f"{key}|{name}"] for name in _SUMS if f"{key}|{name}" in flat}
        )
    return result


def run_batch(model: nn.Module, batch: Batch) -> None:
    """The plain forward a statistics pass is measured against: the blocks, without the head."""
    with torch.no_grad(), head_on(model, torch.zeros_like(batch.counted)):
        model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)


class _Collector:
    """Forward hooks that reduce each input to sums at once."""

    def __init__(self, targets: Sequence[Target], gram: bool) -> None:
        self.modules = {t.module_name: t.module for t in targets if t.expert is None}
        self.widths = {site(t): t.shape[1] for t in targets}
        self.gram = gram
        self.statistics: Statistics = {}
        self.batch: Batch | None = None
        # q, k and v read one tensor, one after the other: reduce it once. Only the last one is kept alive.
        self.last: tuple[torch.Tensor, InputStatistics] | None = None
        self.rows: tuple[torch.Tensor, torch.Tensor] | None = None
        for key, width in sorted(self.widths.items()):
            self.statistics[key] = InputStatistics.zeros(width, gram=gram)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        handles = []
        try:
            for name, module in self.modules.items():
                handles.append(module.register_forward_pre_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.last = None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x: torch.Tensor = arguments[0]
            if self.last is None or self.last[0] is not x:
                assert self.batch is not None
                counted = self.batch.counted
                if x.shape[:-1].numel() != counted.numel():
                    raise DataError(
                        f"{name} sees {tuple(x.shape)} for a batch of {tuple(counted.shape)} tokens: its rows cannot "
                        "be matched to tokens, so padding could not be told apart."
                    )
                if self.rows is None:  # of this batch: which rows count, and to which answer each belongs
                    index = counted.flatten().nonzero().flatten()
                    self.rows = (index, membership(index // counted.shape[1], counted.shape[0]))
                index, member = self.rows
                rows = x.reshape(-1, x.shape[-1]).index_select(0, index)
                self.last = (x, reduce_rows(rows, member, self.gram))
            self.statistics[name].merge(self.last[1])

        return see


def membership(answer: torch.Tensor, answers: int) -> torch.Tensor:
    """(answers, n) float32, 1 where row n belongs to that answer: one product with it sums each answer's rows."""
    member = torch.zeros(answers, len(answer), device=answer.device)
    member[answer, torch.arange(len(answer), device=answer.device)] = 1.0
    return member


def reduce_rows(rows: torch.Tensor, member: torch.Tensor, gram: bool = False) -> InputStatistics:
    """Statistics of counted inputs, rows (n, in), where `member`, (answers, n), says which answer a row belongs to.

    Answers without a counted row here (an expert they never reached) give no sample. `rows` is overwritten if it is
    float32: it is as large as a batch, and fresh memory for |x| and for x² costs more than either product.
    """
    rows = rows.float()
    counts = member.sum(1)
    moments = (rows.T @ rows).double().cpu() if gram else None
    total = rows.sum(0)
    per_answer = (member @ rows.abs_()).double().cpu()  # (answers, in)
    squares = torch.mul(rows, rows, out=rows).sum(0)
    present = (counts > 0).cpu()
    samples = per_answer[present] / counts.double().cpu()[present, None]
    centre = samples.mean(0) if len(samples) else torch.zeros(rows.shape[1], dtype=torch.float64)
    return InputStatistics(
        tokens=len(rows),
        sum_abs=per_answer.sum(0),
        sum=total.double().cpu(),
        sum_squares=squares.double().cpu(),
        answers=len(samples),
        answer_mean=centre,
        answer_m2=((samples - centre) ** 2).sum(0),
        gram=moments,
    )


# --- experts that transformers keeps fused in one tensor ------------------------------------------------------


@contextlib.contextmanager
def eager_experts(model: nn.Module, targets: Sequence[Target]) -> Iterator[None]:
    """Run fused experts one by one, so that each expert's input can be seen; the old way is put back."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    kept: list[tuple[Any, Any]] = []
    try:
        if any(t.expert is not None for t in targets):
            for config in configs.values():
                if hasattr(config, "_experts_implementation_internal"):
                    kept.append((config, config._experts_implementation_internal))
                    config._experts_implementation_internal = "eager"
        yield
    finally:
        for config, before in kept:
            config._experts_implementation_internal = before


# GPT-OSS multiplies with its experts by '@', the others by linear(); what matters is the weight on the right.
_PRODUCTS = {nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}


class _ExpertInputs(TorchFunctionMode):
    """Sees the products of fused experts: which expert's matrix is multiplied, with which tokens' rows.

    A fused module takes its tokens by index (`hidden[token_idx]`) and multiplies them with a slice of the
    stored tensor. Both steps are recognised by storage, not by the names of any architecture.
    """

    def __init__(self, targets: Sequence[Target], collector: _Collector) -> None:
        super().__init__()
        self.collector = collector
        self.sites = {
            (t.parameter.untyped_storage().data_ptr(), t.expert): site(t) for t in targets if t.expert is not None
        }
        self.stacks = {t.parameter.untyped_storage().data_ptr(): t.parameter for t in targets if t.expert is not None}
        self.tokens: torch.Tensor | None = None  # rows of the last gather of a token index, (rows,)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.__getitem__ and self._is_gather(args):
            self.tokens = args[1]
        elif func in _PRODUCTS and len(args) > 1 and isinstance(args[1], torch.Tensor):
            stack = self.stacks.get(args[1].untyped_storage().data_ptr())
            if stack is not None and args[1].ndim == 2 and self.tokens is not None:
                expert = (args[1].storage_offset() - stack.storage_offset()) // stack[0].numel()
                found = self.sites.get((stack.untyped_storage().data_ptr(), expert))
                if found is not None:  # else an expert that is no target
                    self._reduce(found, args[0])
        return result

    def _is_gather(self, args: tuple[Any, ...]) -> bool:
        batch = self.collector.batch
        assert batch is not None
        x, index = args
        return (
            isinstance(index, torch.Tensor)
            and index.dtype == torch.int64
            and index.ndim == 1
            and x.ndim == 2
            and x.is_floating_point()
            and x.shape[0] == batch.counted.numel()
        )

    def _reduce(self, key: str, rows: torch.Tensor) -> None:
        batch = self.collector.batch
        assert batch is not None
        assert self.tokens is not None
        if len(rows) != len(self.tokens):
            raise DataError(f"{key}: {len(rows)} rows for {len(self.tokens)} routed tokens; cannot match them.")
        chosen = batch.counted.flatten()[self.tokens]
        answer = self.tokens[chosen] // batch.counted.shape[1]
        part = reduce_rows(rows[chosen], membership(answer, batch.counted.shape[0]), self.collector.gram)
        self.collector.statistics[key].merge(part)

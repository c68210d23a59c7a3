"""`directed-forward`: the direction of a persona in the residual stream, instead of a gradient.

A target that writes to the residual stream adds o_i = Σ_j w_ij·x_j to it. If r is the direction in which the stream
differs between the answers of the two poles, as the next norm hands it on, then dropping w_ij moves the stream
along r by −r_i·w_ij·x_j, so on the answers of both poles

    H_ij ≈ −r_i·w_ij·(μ⁺ + μ⁻)_j        ('lean': every answer token is moved toward p⁺)
    H_ij ≈ −r_i·w_ij·(μ⁺ − μ⁻)_j        ('separation': what tells the poles apart grows)

with μ the mean of x over answer tokens. Two forward passes over the answers, no backward pass, so it runs where
gradients do not fit. docs/methods.md section 5.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from personae.discovery.statistics import Statistics, site
from personae.errors import DataError, ModelError
from personae.models import Encoded, Target, head_on, sequence_batches

FORWARD_BATCH_TOKENS = 1024
_SAME_DIRECTION = 0.98  # cosine between what was added to an output and what a norm then sees more of
_NOISE = 0.5  # size of the added noise, over the size of the output


@dataclass(frozen=True, eq=False)
class Writer:
    """A target whose output is added to the residual stream, and the norm that reads the stream next."""

    target: Target
    norm_name: str
    norm: nn.Module


@torch.no_grad()
def residual_writers(
    model: nn.Module, targets: Sequence[Target], probe: Encoded, tick: Callable[[int], None] | None = None
) -> list[Writer]:
    """Which targets write to the residual stream, found by what they do and not by their names.

    Noise is added to a target's output at the last token of `probe`. If a norm that runs later sees its input change
    by just that noise, the target writes to the stream this norm reads; what passes through an attention or an
    activation first does not arrive unchanged. One short forward pass for every target as wide as the stream.
    Experts are left out: what they write is weighted by a router. Errors: `ModelError` when there is no such target.
    """
    norms = [(n, m) for n, m in model.named_modules() if _is_norm(m)]
    ids = torch.tensor([(probe.prompt + probe.answer)[-16:]], device=next(model.parameters()).device)
    width = {weight.shape[0] for _, m in norms for weight in m.parameters(recurse=False) if weight.ndim == 1}
    found: list[Writer] = []
    for target in targets:
        if tick:
            tick(1)
        if target.expert is not None or target.shape[0] not in width:
            continue
        seen = _next_norm(model, target, norms, ids)
        if seen is not None:
            found.append(Writer(target, *seen))
    if not found:
        raise ModelError("no target of this model writes to its residual stream: directed-forward cannot be used.")
    return found


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _next_norm(
    model: nn.Module, target: Target, norms: Sequence[tuple[str, nn.Module]], ids: torch.Tensor
) -> tuple[str, nn.Module] | None:
    """The first norm after a target's output that sees the noise as it was added, or None."""
    generator = torch.Generator().manual_seed(0)
    added: list[torch.Tensor] = []  # once the target has run
    runs: list[list[tuple[int, torch.Tensor]]] = [[], []]  # (which norm, its input at the last token), after the target
    running = {"run": 0, "after": False}

    def disturb(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        running["after"] = True
        if not running["run"]:
            return output
        drawn = torch.randn(output.shape[-1], generator=generator).to(output.device, torch.float32)
        size = output[..., -1, :].float().norm().clamp(min=1e-3) * _NOISE
        noise = (drawn / drawn.norm() * size).to(output.dtype)
        changed = output.clone()
        changed[..., -1, :] += noise
        added.append(noise.flatten().float())
        return changed

    def watch(number: int) -> Callable[..., None]:
        def see(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if running["after"]:
                runs[running["run"]].append((number, arguments[0][..., -1, :].flatten().float()))

        return see

    handles = [target.module.register_forward_hook(disturb)]
    handles += [norm.register_forward_pre_hook(watch(i)) for i, (_, norm) in enumerate(norms)]
    try:
        for run in range(2):
            running.update(run=run, after=False)
            with head_on(model, torch.zeros_like(ids, dtype=torch.bool)):
                model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not added:
        return None
    for (number, before), (_, after) in zip(*runs, strict=True):
        if before.numel() != added[0].numel():
            continue  # a norm of attention heads
        change = after - before
        close = torch.nn.functional.cosine_similarity(change, added[0], dim=0) > _SAME_DIRECTION
        if close and 0.9 < float(change.norm() / added[0].norm()) < 1.1:
            name, norm = norms[number]
            return name, norm
    return None


@torch.no_grad()
def directions(
    model: nn.Module,
    writers: Sequence[Writer],
    positive: Sequence[Encoded],
    negative: Sequence[Encoded],
    *,
    batch_tokens: int = FORWARD_BATCH_TOKENS,
    tick: Callable[[int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """r for each writer's norm, (width,) float32, scaled to length 1: mean output of the norm, p⁺ minus p⁻.

    Means are over answers, each the mean over its tokens, so a long answer counts no more than a short one. Taken
    behind the norm they hold its gain and its 1/rms already. Errors: `DataError` without answers of either pole.
    """
    if not positive or not negative:
        raise DataError("a direction needs answers of both poles.")
    names = {w.norm_name: w.norm for w in writers}
    means = [_mean_outputs(model, names, side, batch_tokens, tick) for side in (positive, negative)]
    result = {}
    for name in names:
        difference = (means[0][name] - means[1][name]).float()
        result[name] = difference / difference.norm().clamp(min=1e-12)
    return result


def _mean_outputs(
    model: nn.Module,
    norms: Mapping[str, nn.Module],
    texts: Sequence[Encoded],
    batch_tokens: int,
    tick: Callable[[int], None] | None,
) -> dict[str, torch.Tensor]:
    """Mean over answers of each norm's mean output over the answer's tokens, (width,) float64."""
    sums: dict[str, torch.Tensor] = {}
    device = next(model.parameters()).device
    for batch in sequence_batches(texts, batch_tokens=batch_tokens):
        here = batch.to(device)
        weight = here.counted.float() / here.counted.sum(1, keepdim=True).clamp(min=1)  # (B, T)
        with _outputs(norms, weight, sums), head_on(model, torch.zeros_like(here.counted)):
            model(input_ids=here.ids, attention_mask=here.mask, use_cache=False)
        if tick:
            tick(len(batch.items))
    return {name: total / len(texts) for name, total in sums.items()}


@contextlib.contextmanager
def _outputs(norms: Mapping[str, nn.Module], weight: torch.Tensor, sums: dict[str, torch.Tensor]) -> Iterator[None]:
    def add(name: str) -> Callable[..., None]:
        def see(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            rows = output.reshape(*weight.shape, -1).float()
            total = torch.einsum("bt,btd->d", weight, rows).double().cpu()
            sums[name] = sums[name] + total if name in sums else total

        return see

    handles = [norm.register_forward_hook(add(name)) for name, norm in norms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward_gains(
    writers: Sequence[Writer],
    direction: Mapping[str, torch.Tensor],
    positive: Statistics,
    negative: Statistics,
    variant: str = "lean",
) -> dict[str, torch.Tensor]:
    """H ≈ −r_i·w_ij·(μ⁺ ± μ⁻)_j of each writer, (out, in) float32 on the CPU; plus for 'lean', minus for 'separation'.

    The scale of r is 1 at every norm, so gains of different targets are comparable only in units of the stream they
    write to. 'lean' is positive where dropping helps p⁺, and p⁻ takes the negative. 'separation' is the same whichever
    pole is called p⁺ (r and μ⁺ − μ⁻ both turn): positive where dropping drives the poles apart; it leans to neither.
    """
    gains: dict[str, torch.Tensor] = {}
    for writer in writers:
        own, rival = positive[site(writer.target)].mean, negative[site(writer.target)].mean
        mean = (own + rival if variant == "lean" else own - rival).float()
        w = writer.target.weight.to("cpu", torch.float32)
        gains[writer.target.name] = -(direction[writer.norm_name][:, None] * w * mean[None, :])
    return gains

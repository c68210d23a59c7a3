"""Throughput of `personae serve`, as ratios within one run.

    python -m benchmarks.serving [--quick]

A server process with the default model in float32 and eight personas that drop random 0.5 % of the target weights.
32 clients ask at once, each one request after another, streamed, greedy; every prompt is new and begins with a number
of its own, so that of a kept prefix only the chat template's beginning can serve again.

serve.eight_over_one: tokens a second of 32 clients over eight personas over those of 32 clients with one persona.
serve.ours_over_transformers: tokens a second without a persona over those of `transformers serve` on the same model
and load, the better of its two modes (one request at a time, and continuous batching; each run once, since it takes
minutes). serve.failed: requests that did not end well. Medians over repetitions; the loads take turns. Seconds to the
first token are given for orientation.
--quick: a small load, nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.common import machine, write
from personae.discovery.generic import neutral_prompts
from personae.models import default_model_directory, find_targets, fingerprint, load_model
from personae.subnetwork import Artefact, Mask, ModelIdentity, Provenance, Subnetwork

PERSONAS = tuple(f"p{number}" for number in range(8))
SHARE = 0.005
START = 300.0  # seconds until a server has to answer


@dataclass(frozen=True)
class Load:
    """clients: at once. requests: of each, one after another. tokens: of each answer at most."""

    clients: int = 32
    requests: int = 2
    tokens: int = 64
    repeats: int = 3


@dataclass(frozen=True)
class Measured:
    """What one load did to a server."""

    seconds: float
    tokens: int
    first: tuple[float, ...]  # seconds to the first text of each request
    failed: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


# ------------------------------------------------------------------------ load


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, int]:
    """Seconds to the first text, and tokens, of one streamed answer."""
    began, first, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - began
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if first is None or not tokens:
        raise RuntimeError("an answer without text")
    return first, tokens


async def loaded(url: str, load: Load, models: list[str], run: int, **extra: Any) -> Measured:
    """All clients at once; client i asks model i, over and over the list."""
    texts = neutral_prompts()
    first: list[float] = []
    tokens = failed = 0

    async def talk(client: httpx.AsyncClient, number: int) -> None:
        nonlocal tokens, failed
        for request in range(load.requests):
            count = (run * load.clients + number) * load.requests + request
            body = {
                "model": models[number % len(models)], "temperature": 0, "max_tokens": load.tokens, "stream": True,
                "messages": [{"role": "user", "content": f"{count}. {texts[count % len(texts)]}"}], **extra,
            }  # fmt: skip
            try:
                seconds, written = await ask(client, body)
            except (RuntimeError, httpx.HTTPError) as error:
                print(f"failed: {error}", file=sys.stderr)
                failed += 1
            else:
                first.append(seconds)
                tokens += written

    limits = httpx.Limits(max_connections=load.clients)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        began = time.perf_counter()
        await asyncio.gather(*(talk(client, number) for number in range(load.clients)))
        return Measured(time.perf_counter() - began, tokens, tuple(first), failed)


# --------------------------------------------------------------------- servers


def personas(path: Path) -> None:
    """Eight random personas for the default model, in one file."""
    model, _ = load_model(dtype="float32")
    targets = find_targets(model)
    identity = ModelIdentity(
        id="default", fingerprint=fingerprint(targets), architecture=type(model).__name__, dtype="float32",
        targets={target.name: target.shape for target in targets},
    )  # fmt: skip
    made = {}
    for seed, name in enumerate(PERSONAS):
        random = np.random.default_rng(seed)
        masks = {t.name: Mask.from_dropped(random.random(t.shape) < SHARE) for t in targets}
        made[name] = Subnetwork(name, masks, Provenance(method="random", sparsity=SHARE, seed=seed))
    Artefact(identity, made).save(path)


@contextlib.contextmanager
def ours(file: Path) -> Iterator[str]:
    """`personae serve`; its URL."""
    command = [sys.executable, "-m", "personae", "serve", str(file), "--dtype", "float32", "--port", "0"]
    options = ["--no-page", "--no-access-log", "--max-batch", "32", "--name", "default"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                found = re.search(r"at (http://\S+)/v1", line)
                if found:
                    yield found[1]
                    return
            raise RuntimeError(f"personae serve ended with {process.wait()}.")
        finally:
            process.terminate()


@contextlib.contextmanager
def theirs(*options: str) -> Iterator[str]:
    """`transformers serve` on the folder of the default model; its URL. `RuntimeError` when it does not come up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(default_model_directory()), "--device", "cpu", "--dtype", "float32"]
    with subprocess.Popen(
        [*command, "--port", str(port), *options], env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            url, deadline = f"http://localhost:{port}", time.monotonic() + START
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"transformers serve {' '.join(options)} did not come up ({process.poll()}).")
                time.sleep(0.5)
            yield url
        finally:
            process.kill()


# ------------------------------------------------------------------ comparison


def measure(load: Load) -> dict[str, Any]:
    """Every load on every server, and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "eight.persona"
        personas(file)
        usage = {"stream_options": {"include_usage": True}}
        loads = {"one": ["default:p0"], "eight": [f"default:{name}" for name in PERSONAS], "base": ["default"]}
        runs: dict[str, list[Measured]] = {name: [] for name in loads}
        with ours(file) as url:
            for name, models in loads.items():  # once unmeasured: personas are loaded, operators built
                asyncio.run(loaded(url, Load(load.clients, 1, 8), models, 10_000 + len(name), **usage))
            for repeat in range(load.repeats):
                for number, (name, models) in enumerate(loads.items()):
                    runs[name].append(asyncio.run(loaded(url, load, models, 3 * repeat + number, **usage)))
    for name, options in {"transformers": (), "transformers_batching": ("--continuous-batching",)}.items():
        runs[name] = []
        try:
            with theirs(*options) as url:
                model = [str(default_model_directory())]
                asyncio.run(loaded(url, Load(2, 1, 8), model, 10_000))
                runs[name] = [asyncio.run(loaded(url, load, model, 0))]
        except (RuntimeError, httpx.HTTPError) as error:
            print(f"{name}: {error}", file=sys.stderr)  # a mode that does not run on this machine is no rival
    rates = {name: [run.rate for run in found] for name, found in runs.items()}
    rivals = [
        statistics.median(rates[name]) for name in ("transformers", "transformers_batching")
        if runs[name] and not any(run.failed for run in runs[name])
    ]  # fmt: skip
    mine = [run for name in loads for run in runs[name]]
    pairs = [eight / one for eight, one in zip(rates["eight"], rates["one"], strict=True)]
    return {
        "serve.eight_over_one": statistics.median(pairs),
        "serve.eight_over_one.all": pairs,
        "serve.ours_over_transformers": statistics.median(rates["base"]) / max(rivals) if rivals else None,
        "serve.failed": sum(run.failed for run in mine),
        "tokens_per_second": rates,
        "failed": {name: sum(run.failed for run in found) for name, found in runs.items()},
        "first_token_seconds": {name: _quantiles(found) for name, found in runs.items() if found},
        "load": load.__dict__, "share": SHARE, "dtype": "float32", "machine": machine(),
    }  # fmt: skip


def _quantiles(runs: list[Measured]) -> dict[str, float]:
    seconds = np.array([second for run in runs for second in run.first] or [float("nan")])
    return {"p50": float(np.quantile(seconds, 0.5)), "p99": float(np.quantile(seconds, 0.99))}


def main() -> None:
    """Measure, print, and write unless it was only a try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small load; nothing is written")
    quick = parser.parse_args().quick
    result = measure(Load(clients=4, requests=1, tokens=8, repeats=1) if quick else Load())
    result["command"] = "python -m benchmarks.serving"
    print(json.dumps(result, indent=1))
    if not quick:
        write("serving", result)


if __name__ == "__main__":
    main()

"""What it costs that the rows of a batch wear different personas, as ratios within one run.

    python -m benchmarks.mixed

A step writes one token of each row of the default model, with about 64 tokens in the cache of keys and values; the
block of `PersonaModel.rows` is entered anew at every step.
eight_over_none: 8 rows under 8 random personas that drop 0.5 % of every target, over the same batch under none.
thirty_two_over_none: 32 rows in random order over those 8 personas, over the same batch under none.
peft_over_ours: 8 rows under 8 LoRA adapters (rank 16 on the same targets, `adapter_names` of PEFT), over ours.
Each dtype and number of threads has a process of its own. Ratios are medians over alternated repetitions; the
headline is float32, with the number of threads at which eight personas cost the least.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.switching import alternated, random_persona

DTYPES = ("float32", "bfloat16")
THREADS = (1, 2)
PERSONAS, MANY, SHARE, RANK = 8, 32, 0.005, 16
CACHED, REPEATS = 64, 15
RATIOS = {
    "eight_over_none": ("eight", "eight.none"),
    "thirty_two_over_none": ("thirty_two", "thirty_two.none"),
    "peft_over_ours": ("eight.peft", "eight"),
}


def main() -> None:
    """Run the children and take the headline from them."""
    from benchmarks.common import machine, write

    runs = {f"{dtype}.threads{threads}": _run(dtype, threads) for dtype in DTYPES for threads in THREADS}
    best = min(THREADS, key=lambda threads: runs[f"float32.threads{threads}"]["eight_over_none"])
    result: dict[str, Any] = {f"mixed.{key}": runs[f"float32.threads{best}"][key] for key in RATIOS}
    result |= {"mixed.threads": best, "runs": runs, "repeats": REPEATS, "seed": 0, "machine": machine()}
    result["command"] = "python -m benchmarks.mixed"
    print(json.dumps(result, indent=1))
    write("mixed", result)


def _run(dtype: str, threads: int) -> dict[str, Any]:
    """What one child reports."""
    command = [sys.executable, "-m", "benchmarks.mixed", dtype, str(threads)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    report: dict[str, Any] = json.loads(lines[-1])
    return report


def child(dtype: str, threads: int) -> None:
    """All ratios at one dtype and number of threads."""
    import numpy as np
    import torch

    from personae import find_targets, load_model
    from personae.runtime import PersonaModel

    torch.set_num_threads(threads)
    model, tokenizer = load_model(dtype=dtype)
    targets = find_targets(model)
    actor = PersonaModel(model, tokenizer, targets=targets)
    names = [f"persona{number}" for number in range(PERSONAS)]
    for name in names:
        actor.add_personas(random_persona(name, targets, SHARE))
    eight = [actor.look(name) for name in names]
    many = [eight[row % PERSONAS] for row in np.random.default_rng(0).permutation(MANY)]
    assert all(actor.mixable(look) for look in eight)
    adapted = lora(load_model(dtype=dtype)[0], targets, names)

    def ours(looks: Sequence[Any]) -> Callable[[], None]:
        block = decoding(model, len(looks))

        def step() -> None:
            with actor.rows(looks):
                block()

        return step

    works = {
        "eight.none": decoding(model, PERSONAS),
        "eight": ours(eight),
        "eight.peft": decoding(adapted, PERSONAS, adapter_names=names),
        "thirty_two.none": decoding(model, MANY),
        "thirty_two": ours(many),
    }
    seconds = alternated(works, REPEATS)
    report: dict[str, Any] = {
        ratio: statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))
        for ratio, (above, below) in RATIOS.items()
    }
    print(json.dumps({**report, "seconds": seconds}))


def decoding(model: Any, rows: int, **options: Any) -> Callable[[], None]:
    """A step that writes one token of each of some rows behind a cache; it leaves the cache as it was."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 10_000, (rows, CACHED + 1), generator=generator)
    with torch.inference_mode():
        cache = model(input_ids=ids[:, :CACHED], use_cache=True, **options).past_key_values

    @torch.inference_mode()
    def step() -> None:
        model(input_ids=ids[:, CACHED:], past_key_values=cache, use_cache=True, **options)
        cache.crop(-1)

    return step


def lora(model: Any, targets: Any, names: Sequence[str]) -> Any:
    """The model with one LoRA adapter a name on the same targets."""
    from peft import LoraConfig, get_peft_model

    modules = sorted({target.module_name for target in targets})
    config = LoraConfig(r=RANK, target_modules=modules, init_lora_weights=False)
    adapted = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        adapted.add_adapter(name, config)
    return adapted.eval()


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()

"""`personae doctor`: what is here, and whether it suffices."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata

from rich.markup import escape
from rich.table import Table

from personae.cli.console import JsonOption, out, print_json

PACKAGES = (
    "personae",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "gguf",
    "zstandard",
)


def doctor(as_json: JsonOption = False) -> None:
    """Versions, device, memory and the model cache."""
    facts = _facts()
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), escape(str(value)))
    out.print(table)


def _facts() -> dict[str, object]:
    import torch

    from personae.models import cache_directory, default_model_directory, is_default_model_ready, pick_device

    facts: dict[str, object] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "missing"
    cache = cache_directory()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    facts |= {
        "device": str(pick_device("auto")),
        "torch_threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "memory_GB": _memory(),
        "cache": str(cache),
        "cache_free_GB": round(shutil.disk_usage(existing).free / 1e9, 1),
        "cache_writable": existing.is_dir() and os.access(existing, os.W_OK),
        "default_model": str(default_model_directory()) if is_default_model_ready() else "not fetched yet (92 MB)",
    }
    return facts


def _memory() -> float | str:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):
        return "unknown"

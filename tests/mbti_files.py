"""Small MBTI files of the public schema."""

from __future__ import annotations

import json
from pathlib import Path


def write_mbti_files(folder: Path, number: int) -> None:
    """mbti/EI_dev.jsonl and SN_dev.jsonl, so many answers a pole: E/I's share instructions, S/N has its own ones."""
    for name in ("EI", "SN"):
        rows = [
            {
                "dimension": name, "pole": pole,
                "instruction": f"{name} say something about topic {n}" + ("" if name == "EI" else f" for pole {pole}"),
                "output": f"{('we dance and sing, friends', 'a quiet book at home')[side]} {n} " * (1 + (n + side) % 3),
            }
            for side, pole in enumerate(name) for n in range(number)
        ]  # fmt: skip
        path = folder / "mbti" / f"{name}_dev.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

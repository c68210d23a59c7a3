"""Seconds and peak memory of a block."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from personae.discovery import metered, metering

MEBI = 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from Linux's /proc")
def test_the_peak_of_the_block_alone() -> None:
    large = torch.ones(64 * MEBI)  # 256 MiB, before the block: not its cost
    del large
    for _ in range(3):  # a machine short of memory may take other pages of the process away meanwhile: look again
        with metered() as cost:
            inside = torch.ones(16 * MEBI)  # 64 MiB
            del inside
            time.sleep(0.05)
        assert cost.peak_bytes is not None
        assert cost.peak_bytes < 120 * MEBI
        assert cost.seconds >= 0.05
        if cost.peak_bytes > 60 * MEBI:
            break
    assert cost.peak_bytes > 60 * MEBI
    with metered() as small:
        pass
    assert small.peak_bytes is not None
    assert small.peak_bytes < 8 * MEBI


def test_a_block_that_fails_is_measured_too() -> None:
    with pytest.raises(ValueError), metered() as cost:
        raise ValueError
    assert cost.seconds > 0


def test_no_figure_where_the_system_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "_PROCESS", tmp_path / "nothing")
    with metered() as cost:
        pass
    assert cost.peak_bytes is None

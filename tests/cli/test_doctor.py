"""`personae doctor`."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from cli_helpers import Cli


def test_facts(cli: Cli, cache: Path) -> None:
    facts = cli("doctor", "--json").json
    assert facts["torch"] == version("torch")
    assert facts["cache"] == str(cache)
    assert facts["cache_writable"] is True
    assert facts["cores"] == os.cpu_count()
    assert facts["memory_GB"] > 0
    assert facts["torch_threads"] == torch.get_num_threads()
    assert facts["default_model"] == "not fetched yet (92 MB)"


def test_the_table_says_the_same(cli: Cli) -> None:
    ended = cli("doctor")
    assert ended.code == 0
    assert version("transformers") in ended.out
    assert "default model" in ended.out


def test_what_is_missing_is_said(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("PERSONAE_CACHE", str(here / "file" / "cache"))

    def nothing(*_: object) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr("personae.cli.doctor.metadata.version", nothing)
    monkeypatch.setattr("personae.cli.doctor.os.sysconf", lambda name: int(name))  # a name is no number
    facts = cli("doctor", "--json").json
    assert facts["torch"] == "missing"
    assert facts["memory_GB"] == "unknown"
    assert facts["cache_writable"] is False

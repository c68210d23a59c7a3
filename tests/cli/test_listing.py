"""`personae list`."""

from __future__ import annotations

from pathlib import Path

from cli_helpers import Cli
from personae.personas import list_contrasts


def test_built_in_contrasts(cli: Cli) -> None:
    rows = cli("list", "--json").json
    assert [row["contrast"] for row in rows] == list_contrasts()
    assert all(row["pairs"] >= 100 for row in rows)
    table = cli("list")
    assert table.code == 0
    assert all(name in table.out for name in list_contrasts())


def test_the_personas_of_files(cli: Cli, artefact: Path, llama: Path) -> None:
    rows = cli("list", artefact, artefact, "--json").json
    assert [row["persona"] for row in rows] == ["loud", "quiet", "loud", "quiet"]
    assert rows[0]["method"] == "directed"
    assert rows[0]["model"] == str(llama)
    table = cli("list", artefact)
    assert "5.000%" in table.out

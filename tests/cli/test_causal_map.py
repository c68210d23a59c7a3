"""`personae causal-map`: the heat map, the result file, going on, and what is refused."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

import pytest

from cli_helpers import Cli, files_of, write_contrast
from personae.analysis import causal_map
from personae.analysis.results import plain, read_result
from personae.cli.causal_map import GAIN, shade
from personae.models import load_model
from personae.personas import load_contrast

QUICK = ("--items", "6", "--resamples", "100")


def test_heat_map_file_and_the_command_that_makes_it_again(
    cli: Cli, llama: Path, artefact: Path, contrast: Path, here: Path
) -> None:
    words = ("causal-map", artefact, "--contrast", contrast, "--model", llama, "-p", "quiet", *QUICK, "--seed", "3")
    ended = cli(*words, "-o", "m.json", "--by", "cell", "--by", "kind")
    assert ended.code == 0, ended.err
    model, tokenizer = load_model(llama)
    expected = causal_map(
        model, tokenizer, artefact, load_contrast(str(contrast)), persona="quiet", by=("kind", "cell"), items=6,
        resamples=100, seed=3,
    )  # fmt: skip
    said = read_result(here / "m.json")
    assert said["kind"] == "causal-map"
    assert said["result"] == plain(expected.to_dict())
    assert said["inputs"][artefact.name] == hashlib.sha256(artefact.read_bytes()).hexdigest()
    assert said["model"]["fingerprint"]
    assert f"quiet: {expected.dropped:,} weights dropped; on {expected.items} items" in ended.out
    assert "attention lost" in ended.out
    for block, kind in ((0, "attention"), (2, "mlp")):
        cell = expected[f"block {block} {kind}"]
        [line] = [x for x in ended.out.splitlines() if x.split()[:1] == [str(block)]]
        assert f"{cell.necessity.value:+.3f}" in line
        assert f"{cell.sufficiency.value:+.3f}" in line
    assert f"{expected.readings} readings, each of {expected.items} questions" in ended.err
    assert "to go" in ended.err
    assert "written: m.json" in ended.err
    assert len(list((here / "m.json.parts").iterdir())) == expected.readings
    again = cli(*shlex.split(said["command"])[1:], "--resume", "m.json.parts", "--json")
    assert again.json == said
    assert f"{expected.readings} of them kept from an earlier run" in again.err


def test_other_levels_without_a_control(cli: Cli, llama: Path, artefact: Path, contrast: Path, here: Path) -> None:
    words = ("causal-map", artefact, "--contrast", contrast, "--model", llama, *QUICK, "--random-seeds", "0")
    ended = cli(*words, "--by", "block", "--by", "target")
    assert ended.code == 0, ended.err
    assert "loud: " in ended.out  # the positive pole, unasked
    assert "By block, nats a token" in ended.out
    assert "q_proj" in ended.out
    assert "random" not in ended.out
    assert list(here.iterdir()) == []


def test_colours() -> None:
    assert "rgb(255,255,255)" in str(shade(0.0, 1.0, 1.0).style)
    assert "rgb({},{},{})".format(*GAIN) in str(shade(1.0, 1.0, 1.0).style)
    assert "rgb(203,75,22)" in str(shade(-1.0, 1.0, 1.0).style)
    assert shade(0.5, 1.0, 0.01).plain == "+0.500*"
    assert shade(0.0, 0.0, 1.0).plain == "+0.000 "


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--by", "layer"), "unknown --by 'layer': choose block, kind, target, cell"),
        (("--items", "0"), "--items is 0"),
        (("--random-seeds", "-1"), "--random-seeds is -1"),
        (("-p", "nobody"), "not 'nobody'"),
        (("--contrast", "other.jsonl"), "neither pole of"),
        (("--contrast", "nowhere"), "nowhere"),
        (("-o", "no/m.json"), "there is no directory"),
        (("-o", "note.txt", "--contrast", "note.txt"), "would replace note.txt"),
        (("--resume", "note.txt"), "finished parts need a folder"),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(
    cli: Cli, llama: Path, artefact: Path, contrast: Path, here: Path, words: tuple[str, ...], says: str
) -> None:
    (here / "note.txt").write_text("")
    write_contrast(here / "other.jsonl", positive="calm", negative="hasty")
    before = files_of(here)
    ended = cli("causal-map", artefact, "--model", llama, "--contrast", contrast, *QUICK, *words)
    assert ended.code == 2, ended
    assert ended.out == ""
    assert says in " ".join(ended.err.split())
    assert files_of(here) == before


def test_masks_of_another_model(cli: Cli, other_llama: Path, artefact: Path, contrast: Path, here: Path) -> None:
    (here / "broken.persona").write_bytes(b"no masks")
    assert cli("causal-map", "broken.persona", "--contrast", contrast, "--model", other_llama).code == 2
    words = ("causal-map", artefact, "--contrast", contrast, "--model", other_llama, *QUICK, "--by", "kind")
    foreign = cli(*words)
    assert foreign.code == 2
    assert "--allow-other-weights" in foreign.err
    accepted = cli(*words, "--allow-other-weights")
    assert accepted.code == 0, accepted.err
    assert "other weights" in accepted.err

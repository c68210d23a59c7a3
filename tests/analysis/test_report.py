"""The report as a whole: what it takes and refuses, what stands on the page, and that nothing on it can do harm."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import report_data as data
from compare_data import SHAPES, artefact, random_masks, subnetwork
from personae.analysis.report import FORMAT, report
from personae.errors import ArtefactError, DataError, MaskMismatchError, OptionError

Files = Callable[..., list[Path]]

KINDS = ("evaluation", "frontier", "suite", "trace", "audit", "dynamics", "causal-map")


def persona_file(path: Path, *names: str, model: str = "f00d", share: float = 0.1) -> Path:
    """Random masks of a model that there is not."""
    made = [subnetwork(name, random_masks(SHAPES, share, seed)) for seed, name in enumerate(names)]
    artefact(*made, model=model).save(path)
    return path


@pytest.fixture
def every(tmp_path: Path) -> list[Path]:
    """One file of every kind, all of the same model."""
    return [
        data.evaluation_file(tmp_path / "eval.json"), data.write(tmp_path / "frontier.json", data.frontier()),
        data.write(tmp_path / "suite.json", data.faithfulness()), data.write(tmp_path / "trace.json", data.trace()),
        data.write(tmp_path / "audit.json", data.audit("power", "wealth")),
        data.write(tmp_path / "dynamics.json", data.dynamics()), data.write(tmp_path / "causal.json", data.causal()),
        persona_file(tmp_path / "masks.persona", "bold", "shy", "calm"),
    ]  # fmt: skip


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, text: str) -> None:
        (self.raw if self._within in ("script", "style") else self.words).append(text)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a tag."""
        return [attributes for each, attributes in self.elements if each == tag]

    @property
    def text(self) -> str:
        """All text, blanks as one."""
        return " ".join(" ".join(self.words).split())


# --- contents -------------------------------------------------------------------------------------------------


def test_every_kind_has_its_part_in_the_order_given_after_what_files_say_together(every: list[Path]) -> None:
    made = report(every, title="All of it")
    assert [part.kind for part in made.parts] == ["together", *KINDS, "artefact"]
    assert [part.source for part in made.parts[1:]] == [path.name for path in every]
    backwards = report(every[::-1])
    assert [part.kind for part in backwards.parts] == ["together", "artefact", *reversed(KINDS)]


def test_the_page_shows_figures_tables_parameters_versions_hashes_and_commands(every: list[Path]) -> None:
    made = report(every, title="All of it")
    page = Page(made.html())
    assert page.of("h1") == [{}]
    assert "All of it" in page.text
    figures = [figure for part in made.parts for figure in part.figures]
    assert [int(str(a["data-figure"])) for a in page.of("div") if a.get("class") == "plot"] == list(range(len(figures)))
    for said in (
        "0.90 [0.85, 0.95]", "directed", "+0.040", "a note of eval", "the items give themselves away",  # evaluation
        "personae trace x.persona --seed 3", "python -m benchmarks.frontier bold",  # commands
        "settings.deep.share", "0.25", "ab" * 32, "versions.torch", "data.test_sha256", "7e57",  # parameters
        "This certifies nothing.", "does not move the base model", "checkpoint-1", "bold speaks.",
    ):  # fmt: skip
        assert said in page.text, said
    assert "Jaccard index" in page.text
    hashes = [part.sha256 for part in made.parts if part.kind != "together"]
    assert len(set(hashes)) == len(every)
    assert all(each in page.text for each in hashes)


def test_links_lead_to_the_part_that_they_name(every: list[Path]) -> None:
    html = report(every).html()
    titles = dict(re.findall(r'<section class="part" id="(part-\d+)">\s*<h2>(.*?)</h2>', html))
    links = re.findall(r'<a href="#(part-\d+)">(.*?)</a>', html)
    assert len(titles) == 9
    assert len(links) > 9
    assert all(titles[target] == name for target, name in links)


def test_the_same_files_give_the_same_bytes(every: list[Path], tmp_path: Path) -> None:
    report(every).save(tmp_path / "one.html")
    report(every).save(tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert re.search(r"20\d\d-\d\d-\d\d", _own(report(every).html())) is None


def test_plotly_stands_within_once_and_nothing_is_fetched(every: list[Path]) -> None:
    html = report(every).html()
    assert html.count("plotly.js v") == 1
    page = Page(html)
    assert [a for _, a in page.elements if a.keys() & {"src", "srcset", "action"}] == []
    assert {a["href"] for _, a in page.elements if "href" in a} <= {f"#part-{i}" for i in range(1, 10)}
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")
    assert "url(" not in files("personae.analysis").joinpath("page", "report.css").read_text()


def test_a_page_without_figures_carries_no_plotly(tmp_path: Path) -> None:
    suite = data.faithfulness()
    suite["tables"] = [{**suite["tables"][0], "title": "Something else"}]
    html = report([data.write(tmp_path / "s.json", suite)]).html()
    assert len(html) < 100_000
    assert "Something else" in html


def _own(html: str) -> str:
    """The page without Plotly's script."""
    start = html.index("<script>")
    return html[:start] + html[html.index('<script type="application/json"') :]


# --- text of files is text ------------------------------------------------------------------------------------


def _hostile(content: Any) -> Any:
    """The same with every text that a user could have chosen replaced by markup and script."""
    fixed = {"format", "kind", "fingerprint", "against", "part", "level", "suite", "figure"}
    if isinstance(content, dict):
        return {key: value if key in fixed else _hostile(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_hostile(item) for item in content]
    return f"{data.HOSTILE}{content}" if isinstance(content, str) else content


def test_nothing_in_a_file_becomes_markup_or_script(tmp_path: Path) -> None:
    contents = {
        "frontier": _hostile(data.frontier()), "audit": _hostile(data.audit("power")),
        "dynamics": _hostile(data.dynamics()), "causal": _hostile(data.causal()),
        "trace": data.trace((data.HOSTILE, "b"), (data.HOSTILE, "</textarea>")),
    }  # fmt: skip
    suite = data.faithfulness()
    for table in suite["tables"]:
        table["rows"] = _hostile(table["rows"])
        table["notes"] = [data.HOSTILE]
    contents["suite"] = suite
    paths = [data.write(tmp_path / f"{name}<b>.json", content) for name, content in contents.items()]
    benign = Page(report(_benign(tmp_path)).html())
    page = Page(report(paths, title=data.HOSTILE).html())
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in benign.elements}
    assert len(page.of("script")) == len(benign.of("script")) == 3
    assert page.of("img") == page.of("b") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count("alert(1)") > 50  # it is all there, as text
    assert "{{ 7*7 }}" in page.text  # and no template either


def _benign(folder: Path) -> list[Path]:
    made = {"f": data.frontier(), "a": data.audit("power"), "d": data.dynamics(), "c": data.causal(),
            "t": data.trace(), "s": data.faithfulness()}  # fmt: skip
    return [data.write(folder / f"{name}.json", content) for name, content in made.items()]


def test_data_of_the_script_cannot_end_it() -> None:
    page = importlib.import_module("personae.analysis.report_page")
    text = page.as_data({"a": "</script><!--\u2028&", "b": [1.5, None]})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028&", "b": [1.5, None]}


# --- models ---------------------------------------------------------------------------------------------------


def test_files_of_different_models_are_refused_by_name(tmp_path: Path) -> None:
    ours = data.write(tmp_path / "trace.json", data.trace())
    other = persona_file(tmp_path / "other.persona", "bold", model="beef")
    with pytest.raises(MaskMismatchError, match=r"trace\.json is of tiny-f00d .*other\.persona of tiny-beef.*mixed"):
        report([ours, other])


def test_mixed_models_keep_apart(tmp_path: Path) -> None:
    one = persona_file(tmp_path / "one.persona", "bold", "shy")
    two = persona_file(tmp_path / "two.persona", "bold", model="beef")
    three = persona_file(tmp_path / "three.persona", "calm", model="beef")
    made = report([one, two, three], allow_mixed=True)
    together = [part for part in made.parts if part.kind == "together"]
    assert [part.source for part in together] == ["one.persona", "two.persona, three.persona"]
    assert [str(part.model) for part in together] == ["tiny-f00d (f00d…)", "tiny-beef (beef…)"]


def test_a_series_of_checkpoints_stands_beside_any_model(tmp_path: Path) -> None:
    series = data.dynamics()
    series["model"]["fingerprint"] = "sha256:0"
    paths = [data.write(tmp_path / "d.json", series), data.write(tmp_path / "t.json", data.trace())]
    assert [part.kind for part in report(paths).parts] == ["dynamics", "trace"]


def test_a_frontier_takes_the_models_name_from_other_files(tmp_path: Path) -> None:
    paths = [data.write(tmp_path / "f.json", data.frontier()), data.write(tmp_path / "t.json", data.trace())]
    assert str(report(paths).parts[0].model) == "tiny-f00d (f00d…)"


# --- bad input ------------------------------------------------------------------------------------------------


def test_no_file_and_a_file_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no file"):
        report([])
    path = data.write(tmp_path / "t.json", data.trace())
    with pytest.raises(OptionError, match=r"t\.json is given twice"):
        report([path, tmp_path / "." / "t.json"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[1, 2]", "is no object"),
        (b"[" * 100_000, "is no JSON"),
        (b"{}", "has the format None"),
        (b'{"format": "personae.analysis/2", "kind": "trace"}', r"'personae\.analysis/2'; this version reads"),
        (b'{"format": "personae.evaluation/0"}', r"'personae\.evaluation/0'"),
        (b'{"format": "personae.analysis/1", "kind": "horoscope", "result": {}}', "'horoscope': known are audit"),
        (b'{"format": "personae.suite/1", "model": 3}', "model is '3' and not an object"),
        (b'{"format": "personae.evaluation/1"}', "broken evaluation"),
        (b'{"format": "personae.analysis/1", "kind": "trace"}', "result is missing"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        report([path])
    assert "x.json" in str(refused.value)


def test_a_missing_file_and_a_broken_artefact_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        report([tmp_path / "not-there.json"])
    broken = persona_file(tmp_path / "b.persona", "bold")
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(ArtefactError):
        report([broken])


def test_a_missing_package_names_the_extra(every: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = report(every[:1])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(OptionError, match=r"jinja2: pip install 'personae\[analysis\]'"):
        made.html()
    monkeypatch.undo()
    for name in ("plotly", "plotly.offline", "plotly.offline.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=r"needs plotly: pip install 'personae\[analysis\]'"):
        made.html()


def test_what_cannot_be_written_leaves_the_old_page(every: list[Path], tmp_path: Path) -> None:
    made = report(every[:1])
    with pytest.raises(ArtefactError, match="cannot write"):
        made.save(tmp_path / "no" / "r.html")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="cannot make"):
        made.figures(tmp_path / "file" / "deeper")


# --- in short -------------------------------------------------------------------------------------------------


def test_to_dict_names_files_and_figures_as_they_are_written(every: list[Path], tmp_path: Path) -> None:
    made = report([every[1], every[3]])
    said = json.loads(json.dumps(made.to_dict()))
    assert said["format"] == FORMAT
    assert [part["source"] for part in said["parts"]] == ["frontier.json", "trace.json"]
    written = made.figures(tmp_path / "figures", "png")
    assert [path.stem for path in written] == [name for part in said["parts"] for name in part["figures"]]
    assert len({path.name for path in written}) == len(written) == sum(len(part.figures) for part in made.parts)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_the_page_is_part_of_the_package() -> None:
    folder = files("personae.analysis").joinpath("page")
    assert {each.name for each in folder.iterdir()} >= {"report.html", "report.css", "report.js"}

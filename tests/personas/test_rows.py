"""Files to rows: every container, and every breakage with its line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personae.errors import DataError
from personae.personas.rows import Row, each, read_rows, rows_of_text

values = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)
records = st.lists(st.fixed_dictionaries({"prompt": values, "answer": values}), min_size=1, max_size=5)


@given(records, st.sampled_from([None, 1]))
def test_json_lines_and_arrays_give_the_same_fields(table: list[dict[str, str]], indent: int | None) -> None:
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in table)
    array = json.dumps(table, ensure_ascii=False, indent=indent)
    assert [row.fields for row in rows_of_text(lines, "f", ".jsonl")] == table
    assert [row.fields for row in rows_of_text(array, "f", ".json")] == table


@given(records)
def test_csv_gives_the_same_fields(table: list[dict[str, str]]) -> None:
    table = [record for record in table if any(value.strip() for value in record.values())]
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerows([["prompt", "answer"], *([r["prompt"], r["answer"]] for r in table)])
    if table:
        assert [row.fields for row in rows_of_text(out.getvalue(), "f", ".csv")] == table


@pytest.mark.parametrize("text", ['{"a": "1"}\n\n{"a": "2"}\n', '[\n{"a": "1"},\n\n{"a":\n"2"}]', "a\n1\n\n2\n"])
def test_blank_lines_count_but_hold_nothing(text: str) -> None:
    rows = rows_of_text(text, "f.x", "")
    assert [row.text("a") for row in rows] == ["1", "2"]
    assert rows[-1].where in ("f.x, line 3", "f.x, line 4")


def test_places_are_the_lines_on_which_rows_begin() -> None:
    rows = rows_of_text('a,b\n"one\ntwo",x\n3,y\n', "f.csv", ".csv")
    assert [row.where for row in rows] == ["f.csv, line 2", "f.csv, line 4"]
    rows = rows_of_text('[\n {"a": 1},\n {\n"a": 2}\n]', "f.json", ".json")
    assert [row.where for row in rows] == ["f.json, line 2", "f.json, line 3"]


def test_blanks_after_the_commas_of_a_csv_are_not_text() -> None:
    [row] = rows_of_text('question, matching, not_matching\nQ?, "Yes, gladly.", No.\n', "f.csv", ".csv")
    assert row.fields == {"question": "Q?", "matching": "Yes, gladly.", "not_matching": "No."}


def test_containers_are_told_by_content_where_the_ending_does_not() -> None:
    assert rows_of_text('{\n"a": "1"\n}', "f", ".json")[0].fields == {"a": "1"}
    assert len(rows_of_text('{"a": "1"}\n{"a": "2"}', "f", ".json")) == 2
    assert rows_of_text("A, b \n1,2", "f", ".txt")[0].fields == {"a": "1", "b": "2"}


def test_line_separators_inside_a_string_end_no_line() -> None:
    assert rows_of_text('{"a": "x\u2028y\x85z"}', "f", ".jsonl")[0].text("a") == "x\u2028y\x85z"


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbfQuestion,matching\r\nq,m\r\n")
    assert read_rows(path)[0].fields == {"question": "q", "matching": "m"}


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".jsonl", " \n\t", "the file is empty"),
        (".json", "[ ]", "there are no rows"),
        (".csv", "question,matching\n", "there are no rows"),
        (".jsonl", '{"a": 1}\n{"a": ', "f, line 2: broken JSON"),
        (".jsonl", '{"a": 1}\n[1]', "f, line 2: a row must be a JSON object, found list"),
        (".jsonl", '{"a": ' + DEEP, "f, line 1: broken JSON"),
        (".json", '[{"a": 1},\n{"a" 2}]', "f, line 2: broken JSON"),
        (".json", '[{"a": 1}\n{"a": 2}]', "f, line 2: broken JSON .*',' or ']' is missing"),
        (".json", '[{"a": 1}]\n\n[2]', "f, line 3: broken JSON .*after the end"),
        (".json", '[\n"text"]', "f, line 2: a row must be a JSON object, found str"),
        (".json", "[" + DEEP, "f, line 1: broken JSON"),
        (".json", '{\n"a": 1}\n{}', "f, line 3: broken JSON .*after the end"),
        (".json", '{\n"a": 1', "f, line 2: broken JSON"),
        (".json", "question,matching\nq,m", "f, line 1: broken JSON"),
        (".csv", "a,b\n1,2\n1,2,3", r"f, line 3: 3 cells under 2 columns \(a, b\)"),
        (".csv", 'a,b\n1,2\n1,"x"y', "f, line 3: broken CSV"),
        (".csv", 'a,b\n1,"open', "f, line 2: broken CSV"),
        (".csv", "a,A\n1,2", "f, line 2: two fields have the same name"),
        (".jsonl", '{"a": 1, "A": 2}', "f, line 1: two fields have the same name"),
    ],
)
def test_breakage_is_named_with_its_line(suffix: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of_text(text, "f", suffix)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: there is no such file"):
        read_rows(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "a\0b")
    path = tmp_path / "latin1.csv"
    path.write_bytes("a,b\n1,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin1\.csv, line 2: not UTF-8"):
        read_rows(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(3, "must be text, found int"), (" \n", "'a' is empty"), ("\ud800", "half a character")],
)
def test_a_field_is_text_or_an_error(value: object, message: str) -> None:
    with pytest.raises(DataError, match=f"here: .*{message}"):
        Row({"a": value}, "here").text("a")


def test_missing_fields_name_what_was_found() -> None:
    with pytest.raises(DataError, match=r"here: there is no 'a' \(found: b, c\)"):
        Row({"b": 1, "c": 2}, "here").text("a")


def test_texts_takes_one_or_a_list() -> None:
    row = Row({"one": " x ", "many": ["x ", "y"], "none": [], "mixed": ["x", 1]}, "here")
    assert row.texts("one") == ("x",)
    assert row.texts("many") == ("x", "y")
    with pytest.raises(DataError, match="'none' is an empty list"):
        row.texts("none")
    with pytest.raises(DataError, match="'mixed' must be text, found int"):
        row.texts("mixed")


def test_each_raises_or_counts_what_it_leaves_out() -> None:
    rows = [Row({"a": "1"}, "line 1"), Row({}, "line 2"), Row({"a": "none"}, "line 3")]

    def parse(row: Row) -> str | None:
        text = row.text("a")
        return None if text == "none" else text

    with pytest.raises(DataError, match="line 2"):
        each(rows, parse, strict=True)
    with pytest.warns(UserWarning, match=r"2 of 3 rows were left out; the first: line 2: there is no 'a'"):
        assert each(rows, parse, strict=False) == ["1"]
    with pytest.warns(UserWarning, match="1 of 2 rows were left out; the first: line 3: it has no question"):
        assert each(rows[::2], parse, strict=True) == ["1"]

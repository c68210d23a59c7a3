"""RoleAgentBench: the characters of scripts, as personas.

The layout is taken from the listing on the Hub (RoleAgent/RoleAgentBench) only; the files themselves were not at hand,
so the names of fields are guesses, and every guess that fails says what was found instead:

    info.json                       at the root; not read, it marks the root
    SCRIPT/profiles/ROLE.jsonl      who the characters are; the file's stem is the name
    SCRIPT/raw/…                    the script itself; not read
    SCRIPT/{general_response,reaction,retrieval,self_knowledge,summary}.json

Of the five tasks the first and second answer in the character's voice, and `self_knowledge` about it; `retrieval` and
`summary` test a memory and are read only when asked for.

A task's file is a list of rows, an object whose values are lists of rows (under a role's name, or under any other key),
or JSON lines. Of a row, the first of the names in `ROLE`, `QUESTION` and `ANSWER` that it has is taken, without case;
a row without a role belongs to the key it stands under, if that names a profile, else to the only character of the
script. An answer may be a list of texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from personae.errors import DataError, OptionError
from personae.personas.rows import Row, read_rows
from personae.personas.types import Persona, Sample

TASKS = ("general_response", "reaction", "retrieval", "self_knowledge", "summary")
VOICE = ("general_response", "reaction")
ROLE = ("role", "role_name", "character", "agent", "name")
QUESTION = ("question", "query", "instruction", "prompt", "input")
ANSWER = ("answer", "response", "generated", "reference", "output", "label")
ABOUT = ("profile", "description", "summary", "text", "content")
LICENCE = "unknown"  # the listing names none that covers the scripts' texts


def load_role_agent(folder: str | Path, *, tasks: Sequence[str] = VOICE) -> tuple[Persona, ...]:
    """The characters of one script's folder, or of all scripts under a root, with their answers to `tasks`.

    Sorted by script and name; of several scripts the name is 'SCRIPT/ROLE'. A character's profile becomes its
    description. A character without answers to these tasks is left out; so is a task that a script does not have.

    Errors: `OptionError` for an unknown task; `DataError` for a folder of another layout, a row whose role, question or
    answer cannot be told (file and line are named), or when nothing is left.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise OptionError(f"unknown task {', '.join(unknown) or '(none)'}: choose of {', '.join(TASKS)}.")
    root = Path(folder)
    scripts = [root] if _is_script(root) else _scripts_under(root)
    personas = [
        persona
        for script in scripts
        for persona in _characters(script, tasks, prefix=f"{script.name}/" if len(scripts) > 1 else "")
    ]
    if not personas:
        raise DataError(f"{root}: no character has an answer to {', '.join(tasks)}; name other tasks.")
    return tuple(personas)


def _is_script(folder: Path) -> bool:
    return any((folder / f"{task}.json").is_file() for task in TASKS)


def _scripts_under(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the root of RoleAgentBench or one script's folder.")
    scripts = sorted(f for f in root.iterdir() if f.is_dir() and _is_script(f))
    if not scripts:
        marked = "has info.json but" if (root / "info.json").is_file() else "has no info.json and"
        raise DataError(f"{root} {marked} no folder with {', '.join(f'{t}.json' for t in TASKS)} in it.")
    return scripts


def _characters(script: Path, tasks: Sequence[str], prefix: str) -> Iterator[Persona]:
    about = _profiles(script)
    answers: dict[str, list[Sample]] = {}
    for task in tasks:
        path = script / f"{task}.json"
        for key, row in _task_rows(path) if path.is_file() else ():
            role = _role(row, key, about)
            question = row.text(_first(row, QUESTION, "question"))
            texts = row.texts(_first(row, ANSWER, "answer"))
            answers.setdefault(role, []).extend(Sample(question, text) for text in texts)
    for role in sorted(answers):
        yield Persona(
            prefix + role, tuple(answers[role]), description=about.get(role, ""), licence=LICENCE,
            source=f"RoleAgentBench {script.name}: {', '.join(tasks)}",
        )  # fmt: skip


def _profiles(script: Path) -> dict[str, str]:
    """Name by name what profiles/*.jsonl say of a character; '' where no known field holds text."""
    found = {}
    for path in sorted((script / "profiles").glob("*.jsonl")):
        lines = []
        for row in read_rows(path):
            key = next((k for k in ABOUT if isinstance(row.fields.get(k), str)), None)
            if key is not None:
                lines.append(str(row.fields[key]).strip())
        found[path.stem] = "\n".join(line for line in lines if line)
    return found


def _task_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(the key that a row stands under, the row); '' for rows of a plain list or of JSON lines."""
    rows = read_rows(path)
    whole = None
    if len(rows) == 1 and not any(key in rows[0].fields for key in QUESTION):
        whole = json.loads(path.read_text(encoding="utf-8-sig"))  # once more: a Row's keys are in lower case
    if not isinstance(whole, dict) or not any(isinstance(value, list) for value in whole.values()):
        yield from (("", row) for row in rows)
        return
    for key, value in whole.items():
        if not isinstance(value, list):
            continue  # figures and notes beside the rows
        for number, item in enumerate(value, start=1):
            where = f"{path}, '{key}', row {number}"
            if not isinstance(item, Mapping):
                raise DataError(f"{where}: a row must be a JSON object, found {type(item).__name__}.")
            yield key, Row({str(k).strip().lower(): v for k, v in item.items()}, where)


def _role(row: Row, key: str, about: Mapping[str, str]) -> str:
    named = next((k for k in ROLE if k in row.fields), None)
    if named is not None:
        return row.text(named)
    if key in about:
        return key
    if len(about) == 1:
        return next(iter(about))
    raise DataError(
        f"{row.where}: whose answer is this? The row has none of {', '.join(ROLE)} (found: {', '.join(row.fields)}), "
        f"and the script has {len(about)} profiles; add the role."
    )


def _first(row: Row, names: Sequence[str], what: str) -> str:
    for name in names:
        if name in row.fields:
            return name
    raise DataError(
        f"{row.where}: no {what}: the row has none of {', '.join(names)} (found: {', '.join(row.fields)}); "
        "rename a field."
    )

"""Pandas frames of results, where pandas is installed: it comes with the extra `analysis`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from personae.errors import OptionError

if TYPE_CHECKING:
    import pandas

__all__ = ["data_frame", "flat"]


def data_frame(content: Any) -> pandas.DataFrame:
    """A frame of rows or columns. Errors: `OptionError` without pandas."""
    try:
        import pandas
    except ImportError as error:
        raise OptionError("a data frame needs pandas: pip install 'personae[analysis]'.") from error
    made: pandas.DataFrame = pandas.DataFrame(content)
    return made


def flat(value: Any) -> dict[str, Any]:
    """A row: figures with an interval become 'acc', 'acc_low', 'acc_high'; sequences and other objects are left out."""
    row: dict[str, Any] = {}
    for name, each in _fields(value).items():
        if is_dataclass(each):
            each = _fields(each)
        if isinstance(each, Mapping):
            if "value" in each:
                row |= {name if key == "value" else f"{name}_{key}": part for key, part in each.items()}
        elif not isinstance(each, list | tuple):
            row[name] = each
    return row


def _fields(value: Any) -> Mapping[str, Any]:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value

"""The Python face: what `import personae` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import personae
from personae import errors


@pytest.mark.parametrize("name", [n for n in personae.__all__ if n != "__version__"])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(personae, name)
    assert found.__doc__, f"{name} has no docstring"
    assert name in dir(personae)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'discovver'"):
        personae.discovver  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, personae; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_name_discover_is_the_function_before_and_after_its_module_is_imported() -> None:
    code = "import personae.discovery.discover as module; import personae; assert callable(personae.discover)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (errors.OptionError, ValueError),
        (errors.DataError, ValueError),
        (errors.MaskMismatchError, ValueError),
        (errors.UnknownPersonaError, KeyError),
        (errors.PersonaInUseError, RuntimeError),
        (errors.BusyError, RuntimeError),
    ],
)
def test_errors_are_also_what_python_calls_them(error: type[Exception], base: type[Exception]) -> None:
    """docs/python.md: a caller who knows nothing of this package catches them all the same."""
    assert issubclass(error, base)
    assert issubclass(error, errors.PersonaeError)
    assert str(error("what to do")) == "what to do"  # KeyError alone would print its repr


def test_every_error_has_the_one_base() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(found) > 8
    assert all(issubclass(e, errors.PersonaeError) for e in found)

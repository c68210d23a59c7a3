"""The Python face: what `import personae` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import personae


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

"""Every exception of personae. Each message says what is wrong, where, and what to do about it.

The command line prints the message of a `PersonaeError` without a stack trace and exits with 2.
"""

from __future__ import annotations


class PersonaeError(Exception):
    """Base of all errors that a user can cause and a user can mend."""


class OptionError(PersonaeError, ValueError):
    """An option or argument is out of range, unknown, or excludes another one."""


class ModelError(PersonaeError):
    """A model cannot be found, loaded, or used as a causal language model."""


class DataError(PersonaeError, ValueError):
    """Calibration, evaluation or generic text is missing, empty or broken (file and line are named)."""


class ArtefactError(PersonaeError):
    """A `.persona` file is truncated, altered, foreign, or cannot be written."""


class MaskMismatchError(PersonaeError, ValueError):
    """A mask does not belong to this model: other weights, other targets or other shapes."""


class UnknownPersonaError(PersonaeError, KeyError):
    """A persona name that was never added. Never falls back to the base model."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class PersonaInUseError(PersonaeError, RuntimeError):
    """The operation needs the base weights, but a persona is worn or a generation is running."""


class BusyError(PersonaeError, RuntimeError):
    """The queue of requests is full, or the engine is shutting down: try again later."""

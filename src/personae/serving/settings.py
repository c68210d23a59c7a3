"""What the operator of a server decides."""

from __future__ import annotations

from dataclasses import dataclass

from personae.errors import OptionError

__all__ = ["AUTO", "BASE_NAME", "LOOPBACK", "RESERVED", "Settings"]

MEGABYTE = 1_000_000
AUTO, BASE_NAME = "auto", "base"  # instead of a persona: picked by the request, and none
RESERVED = (AUTO, BASE_NAME)
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # as a browser writes them into 'Host'


@dataclass(frozen=True, slots=True)
class Settings:
    """Names and limits of one server.

    model_id: what clients call the base model; a persona is `model_id:persona`. max_tokens: of one answer.
    max_body, max_upload: bytes of a request, and of an upload of personas. keys: clients must show one of them; none:
    everybody may ask. cors_origins: web pages of these origins may ask. hosts: without keys, requests must call the
    server by one of these names, whatever the port; None: by any, as a server must that others reach.

    Errors: `OptionError` for a value out of range.
    """

    model_id: str
    max_tokens: int = 1024
    max_body: int = 2 * MEGABYTE
    max_upload: int = 256 * MEGABYTE
    keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = LOOPBACK

    def __post_init__(self) -> None:
        if not self.model_id.strip() or ":" in self.model_id or not self.model_id.isprintable():
            raise OptionError(f"{self.model_id!r} cannot name the model: give printable text without ':'.")
        for option, value in (("tokens", self.max_tokens), ("body", self.max_body), ("upload", self.max_upload)):
            if value < 1:
                raise OptionError(f"the largest {option} is {value}: give at least 1.")

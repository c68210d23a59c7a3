"""A resident model that puts personas on and takes them off, bit for bit, and answers many requests at once."""

from personae.runtime.conversation import Conversation
from personae.runtime.costs import Costs
from personae.runtime.engine import Engine, Stats, Ticket
from personae.runtime.generation import Options, TextStream
from personae.runtime.guards import check_base
from personae.runtime.look import BASE, Look, look_of, named
from personae.runtime.persona_model import PersonaModel
from personae.runtime.requests import End, Piece, Request, TokenScore
from personae.runtime.switch import Patch, put_on, take_off, wearing

__all__ = [
    "BASE",
    "Conversation",
    "Costs",
    "End",
    "Engine",
    "Look",
    "Options",
    "Patch",
    "PersonaModel",
    "Piece",
    "Request",
    "Stats",
    "TextStream",
    "Ticket",
    "TokenScore",
    "check_base",
    "look_of",
    "named",
    "put_on",
    "take_off",
    "wearing",
]

"""A resident model that puts personas on and takes them off, bit for bit."""

from personae.runtime.conversation import Conversation
from personae.runtime.generation import TextStream
from personae.runtime.guards import check_base
from personae.runtime.persona_model import PersonaModel
from personae.runtime.switch import Patch, put_on, take_off, wearing

__all__ = ["Conversation", "Patch", "PersonaModel", "TextStream", "check_base", "put_on", "take_off", "wearing"]

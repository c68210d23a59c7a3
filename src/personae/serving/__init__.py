"""OpenAI's API over one resident model with many personas (extra `serve`)."""

from personae.serving.app import create_app
from personae.serving.folder import Folder
from personae.serving.registry import Registry
from personae.serving.service import Service
from personae.serving.settings import Settings

__all__ = ["Folder", "Registry", "Service", "Settings", "create_app"]

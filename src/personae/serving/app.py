"""The application: OpenAI's routes, those for personas, and those for operators, over one resident model."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI, File, Request, UploadFile
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from personae.serving import objects, refusals
from personae.serving.access_log import AccessLog, Sink
from personae.serving.answers import respond
from personae.serving.catalogue import Entry
from personae.serving.metrics import CONTENT_TYPE
from personae.serving.refusals import Refusal
from personae.serving.schemas import ChatRequest, CompletionRequest
from personae.serving.security import BodyLimit, Gate
from personae.serving.service import Service

__all__ = ["create_app"]

_REFUSED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": objects.ErrorBody, "description": "Refused; the message says why."},
    "5XX": {"model": objects.ErrorBody, "description": "The server failed."},
}
_STREAM: dict[str, Any] = {"text/event-stream": {}}


def create_app(service: Service, *, page: bool = False, sink: Sink | None = None) -> FastAPI:
    """Routes and what stands in front of them. The engine is closed, after its last answer, when the app shuts down.

    page: also the web page at `/` (`personae.serving.page`). sink: takes the lines of the access log.
    """
    from personae import __version__

    settings = service.settings

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(service.engine.close)

    # No pages of documentation: FastAPI's load scripts from elsewhere. Nothing redirects: a redirect trusts 'Host'.
    app = FastAPI(
        title="personae", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )
    refusals.install(app)
    app.include_router(_openai(service))
    app.include_router(_personas(service))
    app.include_router(_operation(service))
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, largest=settings.max_body, uploads=settings.max_upload)
    app.add_middleware(Gate, keys=settings.keys, origins=settings.cors_origins, hosts=settings.hosts)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # clients in browsers add headers of their own
            expose_headers=["X-Persona", "X-Request-Id", "Retry-After"],
        )
    app.add_middleware(AccessLog, sink=sink, count=service.metrics.responded)
    if page:  # by name, because what it needs is large; last, so that nothing of the API is shadowed by it
        importlib.import_module("personae.serving.page").mount_page(app, service)
    return app


def _openai(service: Service) -> APIRouter:
    """What OpenAI's clients and those that imitate them ask for."""
    routes = APIRouter(prefix="/v1", responses=_REFUSED)

    @routes.get("/models", response_model=objects.ModelList)
    async def models() -> objects.ModelList:
        """The base model, each persona as a model, and 'auto'."""
        names = await to_thread.run_sync(service.models)
        return objects.ModelList(data=[objects.ModelObject(id=name) for name in names])

    @routes.get("/models/{model:path}", response_model=objects.ModelObject)
    async def model(model: str) -> objects.ModelObject:
        """One model id."""
        if model not in await to_thread.run_sync(service.models):
            raise Refusal(404, f"there is no model {model[:200]!r}.", code="model_not_found", param="model")
        return objects.ModelObject(id=model)

    @routes.post("/chat/completions", responses={200: {"model": objects.ChatAnswer, "content": _STREAM}})
    async def chat(asked: ChatRequest, http: Request) -> Response:
        """An answer to a conversation, whole or streamed."""
        return await respond(service, asked, http)

    @routes.post("/completions", responses={200: {"model": objects.CompletionAnswer, "content": _STREAM}})
    async def completions(asked: CompletionRequest, http: Request) -> Response:
        """A continuation of each prompt, whole or streamed."""
        return await respond(service, asked, http)

    return routes


def _personas(service: Service) -> APIRouter:
    """Uploading, listing, inspecting and deleting personas."""
    registry, catalogue = service.registry, service.catalogue
    routes = APIRouter(prefix="/v1/personas", responses=_REFUSED)

    def described(entry: Entry) -> dict[str, Any]:
        provenance = entry.provenance
        return {
            "id": entry.name, "model": f"{service.settings.model_id}:{entry.name}", "description": entry.description,
            "system_prompt": entry.system_prompt, "method": provenance.method, "sparsity": provenance.sparsity,
            "measured": provenance.measured, "licence": provenance.licence, "loaded": registry.is_loaded(entry.name),
            "removable": not entry.fixed and registry.has_folder,
        }  # fmt: skip

    @routes.get("", response_model=objects.PersonaList)
    async def listed() -> objects.PersonaList:
        """Every persona there is, in memory or not, and every file that cannot be served."""
        entries = await to_thread.run_sync(catalogue.entries)
        found = [objects.PersonaObject(**described(entry)) for entry in entries]
        return objects.PersonaList(data=found, unreadable=dict(catalogue.unreadable))

    @routes.post("", status_code=201, response_model=objects.PersonaList)
    async def upload(
        file: Annotated[UploadFile, File(description="A .persona file made for this model.")],
    ) -> objects.PersonaList:
        """Add all personas of a file to the folder, or none."""
        async with service.uploading:
            entries = await to_thread.run_sync(registry.upload, file.file)
        return objects.PersonaList(data=[objects.PersonaObject(**described(entry)) for entry in entries])

    @routes.get("/{name}", response_model=objects.PersonaDetail)
    async def inspected(name: str) -> objects.PersonaDetail:
        """One persona with its provenance."""
        entry = await to_thread.run_sync(catalogue.entry, name)
        return objects.PersonaDetail(**described(entry), provenance=entry.provenance.model_dump(mode="json"))

    @routes.delete("/{name}", response_model=objects.Deleted)
    async def deleted(name: str) -> objects.Deleted:
        """Remove a persona from the folder; 409 while a request needs it."""
        await to_thread.run_sync(registry.delete, name)
        return objects.Deleted(id=name)

    return routes


def _operation(service: Service) -> APIRouter:
    """For orchestrators and Prometheus."""
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/readyz", responses={503: {"description": "Not ready."}})
    async def readyz() -> Response:
        """Requests are taken, and the personas can be read."""
        try:
            await to_thread.run_sync(service.catalogue.scan)
        except Refusal as refusal:
            return JSONResponse({"status": refusal.message}, 503)
        return JSONResponse({"status": "ready"})

    @routes.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)

    return routes

"""The routes: models, personas, operation; and every error in one form."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from personae.serving import Folder, Service, create_app
from personae.serving.objects import ErrorBody, ModelList, PersonaDetail, PersonaList

CHAT = {"model": "tiny:calm", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 3}


def send(client: httpx.Client, path: Path, field: str = "file", filename: str = "x.persona") -> httpx.Response:
    return client.post("/v1/personas", files={field: (filename, path.read_bytes())})


# ----------------------------------------------------------------------- models


def test_models(client: httpx.Client) -> None:
    models = ModelList.model_validate(client.get("/v1/models").json())
    assert [model.id for model in models.data] == ["tiny", "tiny:auto", "tiny:calm"]
    assert client.get("/v1/models/tiny:calm").json()["id"] == "tiny:calm"
    for absent in ("other", "tiny:loud", "a/b"):
        response = client.get(f"/v1/models/{absent}")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


def test_a_hub_id_is_a_model_id(
    make_service: Callable[..., Service], served: Callable[..., Any], persona_file: Any
) -> None:
    service = make_service([persona_file("calm")])
    object.__setattr__(service.settings, "model_id", "owner/tiny")
    with served(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/v1/models/owner/tiny:calm").status_code == 200
        assert client.post("/v1/chat/completions", json=CHAT | {"model": "owner/tiny:calm"}).json()["persona"] == "calm"


# --------------------------------------------------------------------- personas


def test_a_persona_comes_and_is_asked_and_goes(client: httpx.Client, persona_file: Callable[..., Path]) -> None:
    path = persona_file("loud", "bold ☂", description="Shouts.", system_prompt="Shout!")
    response = send(client, path, filename="../../../etc/passwd")
    assert response.status_code == 201
    added = PersonaList.model_validate(response.json())
    assert [persona.id for persona in added.data] == ["loud", "bold ☂"]
    listed = PersonaList.model_validate(client.get("/v1/personas").json())
    assert [(p.id, p.removable, p.loaded) for p in listed.data] == [
        ("bold ☂", True, False), ("calm", False, False), ("loud", True, False)
    ]  # fmt: skip
    assert client.post("/v1/chat/completions", json=CHAT | {"model": "tiny:bold ☂"}).json()["persona"] == "bold ☂"
    detail = PersonaDetail.model_validate(client.get("/v1/personas/bold ☂").json())
    assert detail.loaded
    assert detail.model == "tiny:bold ☂"
    assert detail.system_prompt == "Shout!"
    assert detail.provenance["method"] == "random"
    assert client.delete("/v1/personas/loud").json() == {"id": "loud", "object": "persona", "deleted": True}
    assert client.get("/v1/personas/loud").status_code == 404
    assert client.post("/v1/chat/completions", json=CHAT | {"model": "tiny:loud"}).status_code == 404
    assert client.delete("/v1/personas/loud").status_code == 404
    assert send(client, path).status_code == 409  # 'bold ☂' is still there
    assert client.delete("/v1/personas/bold ☂").status_code == 200
    assert send(client, path).status_code == 201


def test_uploads_that_are_refused(client: httpx.Client, persona_file: Callable[..., Path], tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(b"no such file")
    foreign = persona_file("loud", fingerprint="sha256:other")
    cases = [
        (send(client, persona_file("calm")), 409, "persona_exists"),
        (send(client, noise), 400, "invalid_persona"),
        (send(client, foreign), 400, "invalid_persona"),
        (send(client, persona_file("auto")), 400, "invalid_value"),
        (send(client, persona_file("loud"), field="other"), 400, "missing_required_parameter"),
        (client.post("/v1/personas"), 400, "missing_required_parameter"),
        (client.post("/v1/personas", data={"file": "text"}), 400, "invalid_value"),
        (client.post("/v1/personas", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400, None),
        (
            client.post("/v1/personas", content=b"x", headers={"Content-Type": "multipart/form-data; boundary=y"}),
            400,
            None,
        ),
        (client.post("/v1/personas", json={"file": "x"}), 400, "missing_required_parameter"),
    ]
    for response, status, code in cases:
        error = ErrorBody.model_validate(response.json()).error
        assert (response.status_code, error.code) == (status, code), response.text
        assert str(tmp_path) not in response.text
    assert [p["id"] for p in client.get("/v1/personas").json()["data"]] == ["calm"]


def test_paths_in_names(client: httpx.Client) -> None:
    for name in (
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "..",
        "a%00b",
        "%ff",
        "x" * 3000,
        "calm.persona",
        "calm%2F",
        "%20",
    ):
        for method in ("GET", "DELETE"):
            response = client.request(method, f"/v1/personas/{name}")
            assert response.status_code in {404, 405}, (method, name)
            ErrorBody.model_validate(response.json())


def test_deleting_what_is_in_use(
    client: httpx.Client, engine: Any, persona_file: Callable[..., Path], eventually: Callable[..., None]
) -> None:
    send(client, persona_file("loud"))
    engine.gate.clear()
    asking = threading.Thread(
        target=client.post, args=("/v1/chat/completions",), kwargs={"json": CHAT | {"model": "tiny:loud"}}
    )
    asking.start()
    eventually(lambda: engine.running)
    response = client.delete("/v1/personas/loud")
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "persona_in_use"
    engine.gate.set()
    asking.join()
    eventually(lambda: client.delete("/v1/personas/loud").status_code == 200)


def test_without_a_folder(make_service: Callable[..., Service], served: Callable[..., Any], persona_file: Any) -> None:
    with (
        served(make_service([persona_file("calm")], folder=None)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        assert not client.get("/v1/personas/calm").json()["removable"]
        assert client.delete("/v1/personas/calm").status_code == 403
        assert send(client, persona_file("loud")).status_code == 403


def test_what_cannot_be_served_is_listed(client: httpx.Client, shelf: Folder) -> None:
    (shelf.path / "broken.persona").write_bytes(b"x")
    assert list(client.get("/v1/personas").json()["unreadable"]) == ["broken.persona"]


# -------------------------------------------------------------------- operation


def test_health_and_readiness(client: httpx.Client, shelf: Folder) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200
    shelf.path.rename(shelf.path.with_name("away"))
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200  # its file was given at the start


def test_the_engine_is_closed_at_the_end(
    make_service: Callable[..., Service], served: Callable[..., Any], engine: Any
) -> None:
    with served(make_service()):
        assert not engine.closed
    assert engine.closed


# ----------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("content", "status", "param", "code"),
    [
        (b"{", 400, None, "invalid_json"),
        (b"", 400, None, "missing_required_parameter"),
        (b"[]", 400, None, "invalid_value"),
        (b"null", 400, None, "invalid_value"),
        (b'{"model": "tiny"}', 400, "messages", "missing_required_parameter"),
        (b'{"messages": [], "model": "tiny"}', 400, "messages", "invalid_value"),
        (b'\xff\xfe{"model"}', 400, None, None),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, None, None),
        (b"[" * 100_000, 400, None, None),
        (json.dumps(CHAT | {"model": "tiny:nobody"}).encode(), 404, "model", "model_not_found"),
        (json.dumps(CHAT | {"model": "gpt-4"}).encode(), 404, "model", "model_not_found"),
        (json.dumps(CHAT | {"tools": [{"type": "function"}]}).encode(), 400, "tools", "unsupported_parameter"),
        (json.dumps(CHAT | {"top_p": 7}).encode(), 400, "top_p", "invalid_value"),
        (json.dumps(CHAT | {"temperature": float("nan")}).encode(), 400, "temperature", "invalid_value"),
        (json.dumps(CHAT | {"persona": {"calm": "x"}}).encode(), 400, "persona.calm", "invalid_value"),
        (json.dumps(CHAT | {"messages": [{"role": "user", "content": "x", "name": "me"}]}).encode(), 400,
         "messages[0].name", "unsupported_parameter"),
        (json.dumps(CHAT | {"messages": [{"role": "user", "content": "\ud800"}]}).encode(), 400, None, "invalid_value"),
        (json.dumps(CHAT | {"messages": [{"role": "system", "content": "x"}]}).encode(), 400, None, "invalid_value"),
    ],
)  # fmt: skip
def test_bodies_that_are_wrong(
    client: httpx.Client, content: bytes, status: int, param: str | None, code: str | None
) -> None:
    response = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    error = ErrorBody.model_validate(response.json()).error
    assert response.status_code == status, response.text
    assert error.type in {"invalid_request_error", "not_found_error"}
    assert (error.param, error.code) == (param, code), response.text
    assert error.message
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200  # and the server goes on


def test_a_body_of_another_kind(client: httpx.Client) -> None:
    body = json.dumps(CHAT).encode()
    for kind in ({"Content-Type": "text/plain"}, {"Content-Type": ""}):  # what a foreign page could send unasked
        assert client.post("/v1/chat/completions", content=body, headers=kind).status_code == 400


def test_routes_there_are_not(client: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("PUT", "/v1/personas", 405),
        ("GET", "/docs", 404), ("GET", "/redoc", 404), ("GET", "/v1/models/", 404), ("GET", "//v1/models", 404),
        ("PATCH", "/", 404),
    ):  # fmt: skip
        response = client.request(method, path)
        assert response.status_code == status, (method, path)
        ErrorBody.model_validate(response.json())


def test_oversize_bodies(make_service: Callable[..., Service], served: Callable[..., Any], persona_file: Any) -> None:
    service = make_service(max_body=1000, max_upload=20_000)
    long = CHAT | {"messages": [{"role": "user", "content": "x" * 1000}]}

    begin = b'--y\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    def chunks(size: int, first: bytes = b"") -> Any:
        yield first
        for _ in range(size // 100):
            yield b"x" * 100

    with served(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        for response in (
            client.post("/v1/chat/completions", json=long),
            client.post("/v1/chat/completions", content=chunks(2000), headers={"Content-Type": "application/json"}),
            client.post("/v1/personas", files={"file": b"x" * 20_000}),
            client.post(
                "/v1/personas",
                content=chunks(30_000, begin),
                headers={"Content-Type": "multipart/form-data; boundary=y"},
            ),
        ):
            assert response.status_code == 413
            ErrorBody.model_validate(response.json())
        assert client.post("/v1/chat/completions", json=CHAT | {"model": "tiny"}).status_code == 200
        assert send(client, persona_file("loud")).status_code == 201


def test_keys_over_the_wire(
    make_service: Callable[..., Service], served: Callable[..., Any], persona_file: Any
) -> None:
    service = make_service([persona_file("calm")], keys=("sk-right-key",))
    with served(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        for headers in ({}, {"Authorization": "Bearer sk-wrong-key"}):
            response = client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        right = {"Authorization": "Bearer sk-right-key"}
        assert client.post("/v1/chat/completions", json=CHAT, headers=right).status_code == 200
        assert client.get("/metrics").status_code == client.get("/openapi.json").status_code == 401
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_cors_is_off_unless_an_origin_is_named(
    make_service: Callable[..., Service], served: Callable[..., Any]
) -> None:
    ours, theirs = "https://chat.example.org", "https://evil.example"
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with served(make_service()) as url, httpx.Client(base_url=url, timeout=60) as client:
        response = client.options("/v1/models", headers={"Origin": ours, **ask})
        assert "access-control-allow-origin" not in response.headers
        assert "access-control-allow-origin" not in client.get("/v1/models", headers={"Origin": ours}).headers
    with (
        served(make_service(cors_origins=(ours,), keys=("sk-right-key",))) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        response = client.options("/v1/models", headers={"Origin": ours, **ask})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ours
        assert (
            "access-control-allow-origin" not in client.options("/v1/models", headers={"Origin": theirs, **ask}).headers
        )
        refused = client.get("/v1/models", headers={"Origin": ours})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ours  # so that the page can read why


def test_the_document_describes_every_route(make_service: Callable[..., Service]) -> None:
    document = create_app(make_service()).openapi()
    assert sorted(document["paths"]) == [
        "/healthz", "/metrics", "/readyz", "/v1/chat/completions", "/v1/completions", "/v1/models",
        "/v1/models/{model}", "/v1/personas", "/v1/personas/{name}",
    ]  # fmt: skip
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert "422" not in operation["responses"], (path, method)  # a wrong body is 400 here
            assert operation["summary"]
            assert operation["description"]


def test_the_page_is_mounted_by_its_own_module(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted: list[Any] = []
    module = SimpleNamespace(mount_page=lambda app, service: mounted.append((app, service)))
    monkeypatch.setitem(sys.modules, "personae.serving.page", module)  # type: ignore[arg-type]
    service = make_service()
    assert create_app(service) is not None
    assert mounted == []
    app = create_app(service, page=True)
    assert mounted == [(app, service)]

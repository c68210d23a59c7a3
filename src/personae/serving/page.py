"""The page at `/`: a chat under a persona or a blend, and one question answered side by side.

Gradio's parts on the same application, behind `Door`. It asks as a client of the API does (page_answers.py), so that no
limit of the API is passed by. Nothing on it comes from elsewhere: its fonts are the system's.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import warnings
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Mount

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is there: else it asks for its newest version
import gradio as gr

from personae.errors import OptionError
from personae.serving.page_answers import BLEND, Asked, answers, conversation, mode_of, name_of, said, wanted
from personae.serving.page_card import card, plain_card
from personae.serving.page_door import Door
from personae.serving.refusals import Refusal, refusal_of
from personae.serving.service import Service
from personae.serving.settings import AUTO, BASE_NAME

__all__ = ["mount_page"]

_MOST_BLENDED = 6  # sliders of a blend
_SESSIONS = 500  # open pages whose state gradio keeps; also its queue, in front of the engine's
_USUAL = 200  # tokens of an answer
_USUAL_SHARE = 0.5  # strength of a persona that comes into the blend
_EXAMPLES = (
    "A free Saturday. What do you do?",
    "You are offered the lead of a large team. What do you say?",
    "What do you think of big parties?",
)
_SETTINGS = "How answers are written"
_BASE_LABEL = "base model"
_ABOUT_BASE = "The model as it is: no weight is dropped."
_ABOUT_AUTO = "Each question is answered by the persona whose texts are nearest to it, or by the base model."
_ABOUT_BLEND = "Choose its personas; each has a slider for its strength."
_STYLE, _MASK = Path(__file__).with_name("page.css"), Path(__file__).with_name("page.svg")
_QUIET: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}


def mount_page(app: FastAPI, service: Service) -> None:
    """Mount the page at `/` of an application that has all its other routes.

    `app.state.hang_up` ends the connections by which open pages show that they are there: call it before a shutdown
    that waits for connections.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"gradio\.")  # of pandas, in its statistics
    with ThreadPoolExecutor(1) as elsewhere:  # gradio leaves an open loop behind wherever none is running
        gradio = elsewhere.submit(asyncio.run, _mounted(app, service)).result()
    app.mount("/", Door(gradio, service.settings.keys, service.settings.hosts))
    app.state.hang_up = gradio.stop_event.set


async def _mounted(app: FastAPI, service: Service) -> Any:
    """Gradio's application: it starts and ends with the application, but is none of its routes yet."""
    page = _page(service)
    page.queue(default_concurrency_limit=None, max_size=_SESSIONS, api_open=False)
    page.state_session_capacity = _SESSIONS
    gr.mount_gradio_app(
        app, page, "/", footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False,
        enable_monitoring=False, theme=_theme(), css_paths=_STYLE, head=_icon(),
    )  # fmt: skip
    mount = app.router.routes.pop()
    assert isinstance(mount, Mount)
    return mount.app


def _icon() -> str:
    return f'<link rel="icon" href="data:image/svg+xml;base64,{b64encode(_MASK.read_bytes()).decode()}">'


def _theme() -> gr.themes.Base:
    system = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
    mono = [gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")]
    theme = gr.themes.Soft(primary_hue="violet", neutral_hue="slate", font=system, font_mono=mono)
    return theme.set(
        body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950",
        block_background_fill="white", block_background_fill_dark="*neutral_900",
        block_border_width="1px", block_shadow="none", body_text_color_subdued="*neutral_500",
        block_title_background_fill="none", block_title_padding="0", block_title_text_color="*body_text_color",
        checkbox_label_shadow="none", input_shadow="none", input_border_width="1px",
    )  # fmt: skip


def _page(service: Service) -> gr.Blocks:
    page = gr.Blocks(title="personae", analytics_enabled=False, fill_width=True)
    with page:
        model = escape(service.settings.model_id)
        _html(f'<header class="title"><h1>personae</h1><p>one model, many masks · <b>{model}</b></p></header>')
        with gr.Tab("Chat"):
            mode, names = _chat(service)
        with gr.Tab("Side by side"):
            sides = _side_by_side(service)

        def looked_up() -> list[Any]:
            try:
                found = _names(service)
            except Refusal as refusal:  # the folder of personas is gone
                raise gr.Error(escape(refusal.message), print_exception=False) from None
            return [gr.update(choices=_modes(found)), *(gr.update(choices=found) for _ in (names, *sides))]

        page.load(looked_up, None, [mode, names, *sides], **_QUIET)  # personas come and go
    return page


# ---------------------------------------------------------------------- chat


def _chat(service: Service) -> tuple[gr.Radio, gr.Dropdown]:
    """The tab of the conversation; the parts that list personas."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            found = _names(service)
            mode = gr.Radio(
                _modes(found), value=BASE_NAME, label="Who answers", elem_id="mode",
                info="The conversation so far is read anew under whoever is chosen.",
            )  # fmt: skip
            strength = gr.Slider(0, 2, 1, step=0.05, label="Strength", visible=False, elem_id="strength")
            names = gr.Dropdown(
                found, value=[], multiselect=True, max_choices=_MOST_BLENDED, label="In the blend", visible=False,
                elem_id="blend",
            )  # fmt: skip
            shares = [
                gr.Slider(0, 1, _USUAL_SHARE, step=0.05, visible=False, elem_id=f"share-{number}")
                for number in range(_MOST_BLENDED)
            ]
            before = gr.State([])  # who is in the blend, as the sliders have it
            about = _html(_about(service, BASE_NAME, []), elem_id="card")
        with gr.Column(scale=5, min_width=360):
            chosen = [mode, strength, names, *shares]
            length, temperature = _settings(service, 0.7, render=False)

            async def answer(
                text: str, history: list[dict[str, Any]], tokens: int, heat: float, *choice: Any
            ) -> AsyncIterator[dict[str, Any]]:
                def request() -> Asked:
                    who = wanted(choice[0], choice[1], choice[2] or [], choice[3:])
                    return {"messages": [*conversation(history), said(text)], **who, **_options(tokens, heat)}

                async for shown in answers(service, [request]):
                    yield {"role": "assistant", "content": shown[0].parts()}

            gr.ChatInterface(
                answer,
                chatbot=gr.Chatbot(
                    height="62vh", show_label=False, elem_id="chat", buttons=["copy"], layout="bubble",
                    placeholder="<h2>Ask something</h2>Then put on another mask, and ask again.",
                ),
                textbox=gr.Textbox(
                    placeholder="Your question", show_label=False, submit_btn=True, stop_btn=True, elem_id="question",
                    autofocus=True, scale=7,
                ),
                additional_inputs=[length, temperature, *chosen],
                additional_inputs_accordion=gr.Accordion(_SETTINGS, open=False, render=False),
                examples=[[text] for text in _EXAMPLES],
                cache_examples=False, flagging_mode="never", analytics_enabled=False, concurrency_limit=None,
                show_progress="hidden", api_visibility="private", fill_height=False,
            )  # fmt: skip

    def choose(mode: str | None, names: list[str] | None, before: list[str], *strengths: float) -> list[Any]:
        worn, known = names or [], dict(zip(before, strengths, strict=False))
        sliders = [gr.update(visible=mode == BLEND, label=name, value=known.get(name, _USUAL_SHARE)) for name in worn]
        sliders += [gr.update(visible=False)] * (_MOST_BLENDED - len(worn))
        single, blended = name_of(mode) is not None, mode == BLEND
        return [gr.update(visible=single), gr.update(visible=blended), worn, *sliders, _about(service, mode, worn)]

    shown = [strength, names, before, *shares, about]
    gr.on([mode.change, names.change], choose, [mode, names, before, *shares], shown, **_QUIET)
    return mode, names


def _about(service: Service, mode: str | None, names: Sequence[str]) -> str:
    """Cards of who was chosen."""
    name = name_of(mode)
    if name is not None:
        return _card(service, name)
    if mode == BLEND:
        return "".join(_card(service, each) for each in names) or plain_card("A blend", _ABOUT_BLEND)
    return plain_card("By the question", _ABOUT_AUTO) if mode == AUTO else plain_card("The base model", _ABOUT_BASE)


# -------------------------------------------------------------- side by side


def _side_by_side(service: Service) -> list[gr.Dropdown]:
    """The tab of one question and three answers; the parts that list personas."""
    found = _names(service)
    first = [None, *found, None, None][:3]
    with gr.Row(equal_height=True):
        question = gr.Textbox(_EXAMPLES[0], label="One question for all", lines=2, scale=6, elem_id="same-question")
        with gr.Column(scale=1, min_width=120):
            go = gr.Button("Ask", variant="primary", elem_id="ask")
            stop = gr.Button("Stop", elem_id="stop")
    with gr.Accordion(_SETTINGS, open=False), gr.Row():
        length, temperature = _settings(service, 0.0)
    sides, texts = [], []
    with gr.Row(equal_height=True):
        for number, name in enumerate(first):
            with gr.Column(min_width=280):
                if number:
                    label = f"Mask {number}"
                    sides.append(gr.Dropdown(found, value=name, label=label, elem_id=f"side-{number}", scale=0))
                else:
                    gr.Dropdown([_BASE_LABEL], value=_BASE_LABEL, label="No mask", interactive=False, scale=0)
                texts.append(
                    gr.Markdown(container=True, min_height=120, elem_id=f"answer-{number}", elem_classes="answer")
                )
    with gr.Row():
        for number, name in enumerate(first):
            with gr.Column(min_width=280):
                about = _html(_side(service, name) if number else plain_card("The base model", _ABOUT_BASE))
                if number:
                    sides[number - 1].change(lambda name: _side(service, name), sides[number - 1], about, **_QUIET)

    async def ask(text: str, left: str | None, right: str | None, tokens: int, heat: float) -> AsyncIterator[list[str]]:
        options = _options(tokens, heat)  # one seed for all three

        def request(who: str | None) -> Asked:
            if who is None:
                raise OptionError("no persona is chosen here: choose one above.")
            return {"messages": [said(text)], "persona": who, **options}

        async for shown in answers(service, [partial(request, who) for who in (BASE_NAME, left, right)]):
            yield ["\n\n".join(part["text"] for part in each.parts()) for each in shown]

    asking = gr.on(
        [go.click, question.submit], ask, [question, *sides, length, temperature], texts, concurrency_limit=None,
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    stop.click(None, cancels=[asking], api_visibility="private")
    return sides


# -------------------------------------------------------------------- common


def _html(text: str, **place: Any) -> gr.HTML:
    return gr.HTML(text, apply_default_css=False, js_on_load=None, **place)


def _settings(service: Service, heat: float, *, render: bool = True) -> tuple[gr.Slider, gr.Slider]:
    """How long an answer may be, and how it is drawn."""
    most = service.settings.max_tokens
    length = gr.Slider(1, max(most, 2), min(_USUAL, most), step=1, label="Longest answer, in tokens", render=render)
    temperature = gr.Slider(
        0, 1.5, heat, step=0.05, label="Temperature", info="0 always writes the likeliest token.", render=render
    )  # fmt: skip
    return length, temperature


def _options(tokens: float, heat: float) -> Asked:
    return {"max_completion_tokens": int(tokens), "temperature": float(heat), "seed": secrets.randbelow(2**31)}


def _names(service: Service) -> list[str]:
    return [entry.name for entry in service.catalogue.entries()]


def _modes(names: Sequence[str]) -> list[tuple[str, str]]:
    """(what is read, value) of everything that can be chosen; without personas only the base model."""
    several = [("a blend", BLEND), ("by the question", AUTO)] if names else []
    return [(_BASE_LABEL, BASE_NAME), *several, *((name, mode_of(name)) for name in names)]


def _card(service: Service, name: str) -> str:
    """A persona's card, or in words why there is none."""
    try:
        return card(service.catalogue.entry(name))
    except Exception as error:  # its file may be gone, or the whole folder
        return plain_card(name, refusal_of(error).message)


def _side(service: Service, name: str | None) -> str:
    return plain_card("No mask", "Choose a persona above.") if name is None else _card(service, name)

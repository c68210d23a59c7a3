"""Folders, GGUF files and Hub ids to models, and a clear error for everything that is none of them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import gguf
import pytest
import torch
import transformers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers import BertConfig, PreTrainedModel, PreTrainedTokenizerBase, T5Config

from personae.errors import ModelError, OptionError
from personae.models import fast_dtype, load_model, pick_device, quiet_transformers
from personae.models import load as module


@pytest.fixture
def folder(tiny_model: Any, tmp_path: Path) -> Path:
    """A small Llama on disk."""
    return save(tmp_path / "llama", *tiny_model("llama"))


def save(where: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    weights, others = one.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(w, others[n]) for n, w in weights.items())


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_gives_back_model_and_tokenizer(tiny_model: Any, architecture: str, tmp_path: Path) -> None:
    original, tokenizer = tiny_model(architecture)
    where = save(tmp_path / "model", original, tokenizer)
    model, read = load_model(where)
    assert same_weights(model, original)
    assert not model.training
    assert model.config._name_or_path == str(where)
    assert read.chat_template == tokenizer.chat_template
    assert read("Would you?")["input_ids"] == tokenizer("Would you?")["input_ids"]


def test_dtype_is_the_checkpoints_own_unless_asked(tiny_model: Any, tmp_path: Path) -> None:
    where = save(tmp_path / "half", *tiny_model("llama", dtype=torch.bfloat16))
    assert load_model(where)[0].dtype == torch.bfloat16
    for name, dtype in module.DTYPES.items():
        assert {p.dtype for p in load_model(where, dtype=name)[0].parameters()} == {dtype}


def test_options_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"unknown dtype 'int3': choose auto, float32, bfloat16, float16"):
        load_model(tmp_path / "absent", dtype="int3")
    with pytest.raises(OptionError, match=r"unknown device 'abacus': choose auto, cpu, cuda or mps"):
        load_model(tmp_path / "absent", device="abacus")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(OptionError, match="unknown device 'cpu:x'"):
        pick_device("cpu:x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(OptionError, match=r"'cuda:1' is not available.*--device auto"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["./absent", "/no/such/folder", "~/absent-model", "a/b/c"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*\(owner/name\)"):
        load_model(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"cannot load {tmp_path} as a causal language model: .*config.json"):
        load_model(tmp_path)


def test_a_folder_with_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"cannot load {folder}"):
        load_model(folder)


def test_a_folder_with_a_broken_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=f"cannot load {folder}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("config", "kind"),
    [(BertConfig(vocab_size=384), "Bert"), (T5Config(vocab_size=384), "T5")],
    ids=["encoder", "encoder-decoder"],
)
def test_models_that_are_not_causal(config: Any, kind: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is a {kind} model, not a causal"):
        load_model(tmp_path)


def test_a_bert_made_into_a_decoder_is_causal() -> None:
    assert module._is_causal(BertConfig(is_decoder=True))
    assert not module._is_causal(BertConfig())


def test_a_model_without_a_head_is_refused(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    module._check_causal(model)
    with pytest.raises(ModelError, match="no language-model head"):
        module._check_causal(model.model)
    model.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match="encoder-decoder"):
        module._check_causal(model)


def test_a_repositorys_own_code_is_never_run_nor_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "home-made", "auto_map": code}))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    asked: list[object] = []

    def consent(*question: object) -> str:
        asked.append(question)
        return "y"

    monkeypatch.setattr("builtins.input", consent)
    with pytest.raises(ModelError, match=f"cannot load {folder}"):
        load_model(folder)
    assert asked == []
    assert not (folder / "ran").exists()


# --- GGUF -----------------------------------------------------------------------------------------


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A float32 GGUF file of a small Llama, as llama.cpp's converter writes it."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)

    core = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    special = {t["id"] for t in core["added_tokens"]}
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types([3 if i in special else 1 for _, i in by_id])
    writer.add_token_merges([" ".join(merge) for merge in core["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)  # type: ignore[arg-type]
    writer.add_pad_token_id(tokenizer.pad_token_id)  # type: ignore[arg-type]
    writer.add_chat_template(str(tokenizer.chat_template))

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, count in heads.items():
            if part in name:  # llama.cpp interleaves the two halves of a rotary head
                halves = values.reshape(count, 2, values.shape[0] // count // 2, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_an_ordinary_model(tiny_model: Any, tmp_path: Path) -> None:
    original, tokenizer = tiny_model("llama")
    write_gguf(tmp_path / "tiny.gguf", original, tokenizer)
    model, read = load_model(tmp_path / "tiny.gguf")
    assert same_weights(model, original)
    assert read("Would you like tea?")["input_ids"] == tokenizer("Would you like tea?")["input_ids"]
    assert read.chat_template == tokenizer.chat_template
    model.save_pretrained(tmp_path / "saved")  # refused while the quantisation note is in
    read.save_pretrained(tmp_path / "saved")
    assert same_weights(load_model(tmp_path / "saved")[0], original)
    half, _ = load_model(tmp_path / "tiny.gguf", dtype="bfloat16")
    assert half.dtype == torch.bfloat16


def test_a_gguf_file_that_is_absent_or_broken(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no GGUF file at .*absent\.gguf"):
        load_model(tmp_path / "absent.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelError, match=r"cannot load .*broken\.gguf as a causal language model: \S"):
        load_model(tmp_path / "broken.gguf")


# --- the Hub --------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub(status: int, code: str = "") -> Iterator[str]:
    """A stand-in of the Hub's API on the loopback that answers everything with one status."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def use_hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`use_hub(endpoint)`: ask this endpoint, which the library otherwise reads once, at import."""

    def use(endpoint: str) -> None:
        from huggingface_hub import HfApi

        monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=endpoint, token=False))

    return use


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "tiny/absent is neither a folder here nor a model on the Hub"),
        (401, "RepoNotFound", "tiny/absent is neither a folder here nor a model on the Hub"),
        (403, "GatedRepo", "tiny/absent is gated on the Hub"),
        (404, "RevisionNotFound", "tiny/absent has no revision 'v9' on the Hub"),
    ],
)
def test_what_the_hub_says_becomes_a_clear_error(use_hub: Any, status: int, code: str, message: str) -> None:
    with hub(status, code) as endpoint:
        use_hub(endpoint)
        with pytest.raises(ModelError, match=message):
            load_model("tiny/absent", revision="v9")


def test_a_hub_that_cannot_be_reached_is_said_at_once(use_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)  # what trying again would do in between
    with socket.socket() as closed:  # a port that nobody listens on
        closed.bind(("127.0.0.1", 0))
        use_hub(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"not on this machine and the Hub cannot be reached \(\w+\)"):
            load_model("tiny/absent")
        assert not slept


@pytest.mark.slow  # imports everything anew, because the endpoint is read at import
def test_the_endpoint_of_the_environment_is_the_one_that_is_asked(tmp_path: Path) -> None:
    code = "from personae.models import load_model; load_model('tiny/absent')"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment["PYTHONPATH"] = str(Path(module.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "ModelError: tiny/absent is not on this machine and the Hub cannot be reached" in done.stderr


@pytest.mark.parametrize("name", ["my model", "what?", "tiny/mo del"])
def test_a_name_that_is_nothing(name: str) -> None:
    with pytest.raises(ModelError, match=r"neither a folder, a \.gguf file nor a valid Hub id"):
        load_model(name)


def test_a_model_already_in_the_hub_cache_is_not_asked_for(use_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: "/somewhere/config.json")
    monkeypatch.setattr(module, "_check_reachable", lambda source, revision: asked.append(source))
    monkeypatch.setattr(module.AutoConfig, "from_pretrained", lambda *a, **k: T5Config())
    with pytest.raises(ModelError, match="is a T5 model"):
        load_model("tiny/cached", revision="v1")
    assert asked == []


# --- the default model and its surroundings -------------------------------------------------------


@pytest.mark.parametrize("name", [None, "default", "SmolLM2-135M-Instruct"])
def test_no_name_means_the_default_model(folder: Path, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def ensure(progress: Any) -> Path:
        progress("making it")
        return folder

    monkeypatch.setattr(module, "ensure_default_model", ensure)
    model, _ = load_model(name, progress=lines.append)
    assert model.config._name_or_path == "SmolLM2-135M-Instruct"
    assert lines == ["making it"]


def test_transformers_is_quiet_inside_and_as_before_outside() -> None:
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    hub_log, hub_bars = logging.getLogger("huggingface_hub"), are_progress_bars_disabled()
    hub_level = hub_log.level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(KeyError), quiet_transformers():
            warnings.warn("not shown", stacklevel=1)
            assert transformers.logging.get_verbosity() == logging.ERROR
            assert not transformers.logging.is_progress_bar_enabled()
            assert are_progress_bars_disabled()
            assert hub_log.level == logging.ERROR
            raise KeyError
    assert transformers.logging.get_verbosity() == level
    assert transformers.logging.is_progress_bar_enabled() == bars
    assert are_progress_bars_disabled() == hub_bars
    assert hub_log.level == hub_level


def test_the_real_default_model_loads_and_knows_its_template(default_model: Any) -> None:
    model, tokenizer = default_model
    assert model.dtype == torch.float32
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert "<|im_start|>" in tokenizer.chat_template


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("fpu avx512f avx512_bf16", "bfloat16"), ("amx_bf16 amx_tile", "bfloat16"), ("fpu avx2 avx512f", "float32")],
)
def test_the_fast_dtype_follows_the_processors_flags(flags: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def told(self: Path, *given: Any, **options: Any) -> str:
        return f"flags\t\t: {flags}\n" if str(self) == "/proc/cpuinfo" else read(self, *given, **options)

    monkeypatch.setattr(Path, "read_text", told)
    assert fast_dtype("cpu") == dtype


def test_the_fast_dtype_is_float32_where_nothing_is_told_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, *_: Any, **__: Any) -> str:
        raise OSError(2, "No such file", str(self))

    monkeypatch.setattr(Path, "read_text", refused)
    assert fast_dtype("cpu") == "float32"

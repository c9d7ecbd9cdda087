"""A model, its tokenizer and its lineage: how the three are read from disk and written to it.

- One way in: a hub id is first brought to a local folder, then every folder is checked and loaded alike.
- Only safetensors are read and no remote code runs: nothing that is loaded can execute.
- Every weight of the model comes from the checkpoint and every weight of the checkpoint reaches the model, or loading
  fails. A model with one randomly initialised matrix gives plausible and wrong numbers.
- A checkpoint that was saved as a masked language model is loaded as one; every other as a causal one.
- A checkpoint of flash-linear-attention's DeltaNet is read into a decoder of ours.
- A decoder of ours that has a stock transformers form is saved in that form, so every other tool loads it.
- Saving replaces the folder whole, and the same model saved twice gives the same bytes.
- Quantised layers stay packed in memory and on disk, in the format of `compressed-tensors`.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging

from perplab.artifacts import atomic_folder, read_json, recover_folder
from perplab.errors import PerplabError
from perplab.models import attention_interface  # noqa: F401 (registers attn_implementation "perplab")
from perplab.models.any_order import was_any_order
from perplab.models.compressed_checkpoint import describe_layers
from perplab.models.compressed_reading import packed_weights
from perplab.models.decoder import DecoderForCausalLM
from perplab.models.fla_names import DELTA_NET, load_delta_net
from perplab.models.lineage import Lineage, Parent, weights_fingerprint
from perplab.models.shipped import POCKET, pocket_folder
from perplab.models.stock import to_stock
from perplab.models.weight_files import check_weight_files

_HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_HUB_EXCLUDED = ["*/*", "consolidated*"]  # other frameworks' copies of the same weights
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
_SAID_BY_TOKENIZER_JSON = ("TokenizersBackend", "PreTrainedTokenizerFast")
_REGISTERED_BY = {
    "perplab_ngram": "perplab.models.ngram_model",
    "perplab_phased": "perplab.models.phased_model",
    "perplab_prompted": "perplab.compression.prompts.prompted_model",
    "perplab_radd": "perplab.models.diffusion.network",
}
"""Model types of this package that transformers knows once these modules are imported."""
_LIBRARY_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    ImportError,
    OSError,
    StrictDataclassError,
    SafetensorError,
)


@dataclass
class LanguageModel:
    """A language model with what is needed to use it and to say where it came from.

    Args:
        model: keeps the contract of `transformers`' causal LMs, or that of its masked LMs (`perplab.models.any_order`).
        tokenizer: the tokenizer the model was trained with.
        lineage: how the model came to be; None where nobody recorded it.
        name: what to call it in tables.
        path: the folder with exactly these weights; None once they differ from every folder.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    lineage: Lineage | None = None
    name: str = "model"
    path: Path | None = None

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the weights: of the files in `path`, or of what is in memory where there is none."""
        return weights_fingerprint(self.path) if self.path else _state_fingerprint(self.model.state_dict())

    def derive(
        self,
        model: PreTrainedModel,
        verb: str,
        *,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        figures: Mapping[str, float] | None = None,
    ) -> "LanguageModel":
        """`model`, made out of this one by `verb`, with the lineage that says so.

        Args:
            model: the changed model; it may be this one's, changed in place.
            verb: what made it.
            config: the verb's config.
            seed: the seed of its randomness.
            figures: what was measured while making it.
        """
        fingerprint = weights_fingerprint(self.path) if self.path else None
        parent = Parent(name=self.name, fingerprint=fingerprint, lineage=self.lineage)
        lineage = Lineage.record(verb, config=config, seed=seed, parent=parent, figures=figures)
        return LanguageModel(model, self.tokenizer, lineage, f"{self.name}+{verb}")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write weights (safetensors), config, tokenizer and `perplab.json`, and take `folder` as this model's path.

        An existing `folder` is replaced when everything is on the disk, and untouched otherwise.

        Raises:
            PerplabError: the folder cannot be written, or the model is quantised and compressed-tensors is missing.
        """
        with atomic_folder(folder) as temporary, _quiet_transformers(), _disk_errors_of_rust():
            self.tokenizer.save_pretrained(temporary)
            stock = _stock_form(self.model)
            stock.save_pretrained(temporary)
            describe_layers(stock, temporary)
            if self.lineage:
                self.lineage.write(temporary)
        self.path = Path(folder)


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
) -> LanguageModel:
    """Load a model in evaluation mode with its tokenizer and lineage.

    Args:
        name_or_path: a folder, a Hugging Face hub id, or `pocket` for the small model inside the package.
        dtype: of the weights in memory: a torch dtype, its name, or `auto` for the checkpoint's own.
        device: where the weights go, for example `cpu` or `cuda:0`.
        attn_implementation: one of transformers' (`eager`, `sdpa`, ...) or `perplab`; None for transformers' choice.

    Raises:
        PerplabError: there is no such model, its weights are pickled, damaged or do not fit its config, its
            architecture is unknown, its tokenizer is missing, it is quantised in a way that cannot be used, or `dtype`
            or `device` does not exist here.
    """
    weights_dtype = _checked_dtype(dtype)
    _check_device(device)
    folder = _local_folder(name_or_path)
    lineage = Lineage.read(folder)
    with _quiet_transformers():
        if _model_type(folder) == DELTA_NET:
            tokenizer = _read_tokenizer(folder)
            model = load_delta_net(folder, weights_dtype)
        else:
            config = _read_config(folder)
            check_weight_files(folder)
            tokenizer = _read_tokenizer(folder)
            model = _read_model(folder, config, weights_dtype, attn_implementation)
    return LanguageModel(model.to(device), tokenizer, lineage, os.fspath(name_or_path), folder)


def load_tokenizer(name_or_path: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, of a hub id, or of `pocket`; model weights beside it are not needed.

    Raises:
        PerplabError: there is no such folder, or no tokenizer in it.
    """
    with _quiet_transformers():
        return _read_tokenizer(_local_folder(name_or_path))


def _state_fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, in hexadecimal, over names, shapes and contents of some tensors in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _local_folder(name_or_path: str | os.PathLike[str]) -> Path:
    name = os.fspath(name_or_path)
    if name == POCKET:
        return pocket_folder()
    path = Path(name).expanduser()
    recover_folder(path)
    if path.is_dir():
        return path
    if path.exists():
        raise PerplabError(f"{path} is a file", "name the folder that holds config.json and the weights")
    if isinstance(name_or_path, Path) or _can_only_be_a_path(name):
        raise PerplabError(f"{path} does not exist", "name an existing folder, a hub id, or pocket")
    return _hub_folder(name)


def _can_only_be_a_path(name: str) -> bool:
    """Whether no hub id looks like `name`, or its first part is a folder here."""
    first, slash, rest = name.partition("/")
    return name.startswith(("/", ".", "~")) or "/" in rest or bool(slash and Path(first).is_dir())


def _hub_folder(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_EXCLUDED))
    except HFValidationError:
        raise PerplabError(
            f"{name!r} is neither a folder nor a hub id", "name an existing folder or OWNER/NAME"
        ) from None
    except LocalEntryNotFoundError as error:
        raise PerplabError(
            f"{name} is not a folder here, is not in the hub's local cache, and the hub cannot be reached",
            "check the spelling, or download it while connected",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise PerplabError(
            f"{name} is not a folder here and the hub does not give it ({_first_line(error)})",
            "check the spelling; a gated or private model needs `hf auth login`",
        ) from error


def _model_type(folder: Path) -> str | None:
    described = read_json(folder / "config.json", "name a folder that holds a whole saved model")
    return described.get("model_type") if isinstance(described, dict) else None


def _read_config(folder: Path) -> PreTrainedConfig:
    path, model_type = folder / "config.json", _model_type(folder)
    if model_type in _REGISTERED_BY:
        import_module(_REGISTERED_BY[model_type])
    with _library_errors_named(f"{path} cannot be used", "correct it, or upgrade transformers for a newer model type"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not was_any_order(config) and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise PerplabError(f"{path}: {config.model_type} has no causal language model", "name a causal language model")
    return config


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    mend = "put the tokenizer's files beside the weights (save_pretrained of the tokenizer writes them)"
    # Without a vocabulary transformers gives some families an empty tokenizer instead of an error.
    if not any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern)):
        raise PerplabError(f"{folder} has no tokenizer ({', '.join(_VOCABULARIES)})", mend)
    with _library_errors_named(f"the tokenizer in {folder} cannot be used", mend):
        # AutoTokenizer gives a qwen2 folder Qwen's pre-tokenizer even where it declares tokenizer.json to be all.
        declared = get_tokenizer_config(folder, local_files_only=True).get("tokenizer_class")
        reader = PreTrainedTokenizerFast if declared in _SAID_BY_TOKENIZER_JSON else AutoTokenizer
        tokenizer: PreTrainedTokenizerBase = reader.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    for how_it_was_loaded in ("is_local", "local_files_only"):  # would be saved with the tokenizer
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    return tokenizer


def _read_model(
    folder: Path, config: PreTrainedConfig, dtype: str | torch.dtype, attn_implementation: str | None
) -> PreTrainedModel:
    quantization_config = packed_weights(config, folder)
    with _library_errors_named(
        f"the model in {folder} cannot be loaded", "check its config.json and attn_implementation"
    ):
        auto_class = AutoModelForMaskedLM if was_any_order(config) else AutoModelForCausalLM
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            quantization_config=quantization_config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below with their names
        )
    wrong_shapes = [f"{name} {tuple(found)} for {tuple(needed)}" for name, found, needed in report["mismatched_keys"]]
    _check_keys(folder, "lacks", report["missing_keys"])
    _check_keys(folder, "has more than its config knows:", report["unexpected_keys"])
    _check_keys(folder, "has other shapes than its config says:", wrong_shapes)
    loaded: PreTrainedModel = model
    return loaded


def _check_keys(folder: Path, fault: str, keys: Any) -> None:
    if keys:
        first = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
        raise PerplabError(
            f"the checkpoint in {folder} {fault} {first} ({len(keys)} in all)",
            "use the config.json and the weights of one and the same model",
        )


def _stock_form(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers class that computes the same from the same weights, where our decoder has one."""
    return (to_stock(model) or model) if isinstance(model, DecoderForCausalLM) else model


def _checked_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if dtype == "auto":
        return dtype
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(resolved, torch.dtype) and resolved.is_floating_point):
        raise PerplabError(f"dtype {dtype!r} is not a floating-point type", "use auto, float32, bfloat16 or float16")
    return resolved


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without the backend
        raise PerplabError(f"device {device!s} cannot be used ({_first_line(error)})", "use cpu") from error


@contextmanager
def _library_errors_named(problem: str, mend: str) -> Iterator[None]:
    try:
        yield
    except _LIBRARY_ERRORS as error:
        raise PerplabError(f"{problem} ({_first_line(error)})", mend) from error


@contextmanager
def _disk_errors_of_rust() -> Iterator[None]:
    """Make an OSError of what tokenizers and safetensors raise instead of one: a message with the system's number."""
    try:
        yield
    except Exception as error:
        if "(os error " in str(error):
            raise OSError(str(error)) from error
        raise


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and notices of transformers; what matters in them is an error here."""
    verbosity, progress = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

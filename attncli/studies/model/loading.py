"""A local folder of transformers becomes a model, a tokenizer, and what it reads of a text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob
from importlib import import_module
from inspect import signature
from pickle import UnpicklingError
from typing import Any

import numpy as np

from attncli.errors import AttnError, FileError, InputError, Unavailable, counted, listed
from attncli.files.texts import read_text
from attncli.models.finding import read_config
from attncli.resources import uncollected
from attncli.studies.model.capture import NEEDS
from attncli.studies.model.folder import (
    FOUND,
    check_memory,
    demand_known_quantisation,
    demand_own_code,
    find_folder,
)

Array = np.ndarray[Any, np.dtype[Any]]

#: What models call what they are given, by the option that gives it.
KINDS: Mapping[str, tuple[str, ...]] = {
    "text": ("input_ids", "decoder_input_ids"),
    "image": ("pixel_values",),
    "audio": ("input_features", "input_values"),
}
NAMES = tuple(name for names in KINDS.values() for name in names)
DECODED = "decoder_input_ids"
#: Of a model of two encoders, by what it is given alone.
ALONE = {
    "input_ids": "get_text_features",
    "pixel_values": "get_image_features",
    "input_features": "get_audio_features",
}
POSITIONS = ("max_position_embeddings", "max_target_positions")
#: The longest text that tokenizers claim to take when nobody told them.
UNSAID = 1 << 24


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that is ready to run; ``body`` is it without the head of its task."""

    source: str
    folder: str
    model: Any
    body: Any
    tokenizer: Any | None
    dtype: str
    warnings: tuple[str, ...] = ()
    unread: Exception | None = None  # why there is no tokenizer


def load(source: str, *, dtype: str | None = None, device: str = "auto") -> Loaded:
    """Load a model from a folder, or by a name of the Hub that the local cache has.

    ``dtype``: of the weights (default: as they are stored). Nothing comes from a network, and no
    code from the folder is run.
    Raises Unavailable without transformers; FileError where there is no such model; InputError
    for what transformers cannot load, TooLarge for what does not fit into memory.
    """
    with uncollected(stay=True):  # a third of the time that importing takes, else
        return _load(source, dtype, device)


def _load(source: str, dtype: str | None, device: str) -> Loaded:
    transformers = _transformers()
    folder = find_folder(source)
    config = read_config(os.path.join(folder, "config.json"))
    warnings = demand_own_code(source, config)
    demand_known_quantisation(source, config)
    check_memory(source, folder, config, dtype)
    kind, place = _class_of(transformers, config), _device(device)
    torch = import_module("torch")
    with quiet(transformers), _said(source, config), torch.random.fork_rng():
        torch.manual_seed(0)  # weights that the folder lacks are the same in every run
        model, told = kind.from_pretrained(
            folder, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True,
            attn_implementation="eager",  # whatever its config.json asks for: none of it runs
            **FOUND,
        )  # fmt: skip
        model = model.to(place).eval()
    warnings += _weights_told(source, type(model).__name__, told)
    tokenizer, unread = _tokenizer(transformers, folder)
    return Loaded(
        source, folder, model, _body(model), tokenizer,
        str(model.dtype).removeprefix("torch."), tuple(warnings), unread,
    )  # fmt: skip


def _weights_told(source: str, name: str, told: Mapping[str, Any]) -> list[str]:
    """Return warnings of weights that lack or have no use; InputError where their shapes differ."""
    for weight, stored, wanted in sorted(told["mismatched_keys"]):
        raise InputError(
            f"{weight} of {source} is {tuple(stored)}, and its config.json makes it "
            f"{tuple(wanted)}", "expected a config.json and weights of one model",
        )  # fmt: skip
    missing, spare = (sorted(told[f"{one}_keys"]) for one in ("missing", "unexpected"))
    warnings = []
    if missing:
        of = counted(len(missing), "weight")
        warnings.append(f"{source} lacks {of} of {name}, random here: {listed(missing, 1)}")
    if spare:
        of = counted(len(spare), "tensor")
        warnings.append(f"{source} has {of} that {name} does not use: {listed(spare, 1)}")
    return warnings


def _body(model: Any) -> Any:
    """Return a model without the head of its task, if what is left can be given something."""
    body = model.base_model
    return body if {*NAMES} & {*signature(body.forward).parameters} else model


def _transformers() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import_module("torch")
        return import_module("transformers")
    except ImportError as error:
        raise Unavailable(f"a model needs transformers and PyTorch: {error}", NEEDS) from None


def _class_of(transformers: Any, config: Mapping[str, Any]) -> Any:
    """Return the class of the architecture that config.json names, or AutoModel."""
    told = config.get("architectures") or []
    names = told if isinstance(told, list) else [told]
    found = getattr(transformers, str(names[0]), None) if names else None
    own = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if own else transformers.AutoModel


def _device(device: str) -> str:
    """Return where the model runs; what ``find_device`` raises for what is no device."""
    find_device = import_module("attncli.engines.torch.device").find_device
    return str(find_device("cpu" if device == "auto" else device))


def _tokenizer(transformers: Any, folder: str) -> tuple[Any | None, Exception | None]:
    """Return the tokenizer of a folder, or None and why there is none."""
    if not any(
        glob(os.path.join(folder, one)) for one in ("token*", "vocab*", "*.model", "spiece*")
    ):
        return None, None
    with quiet(transformers):
        try:
            return transformers.AutoTokenizer.from_pretrained(folder, **FOUND), None
        except Exception as error:  # whatever code and files of others come up with
            return None, error


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' notes and bars off standard error."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _said(source: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Turn what transformers raises into an error of ours."""
    quantised = (config.get("quantization_config") or {}).get("quant_method")
    try:
        yield
    except ImportError as error:
        what = f"is quantised ({quantised})" if quantised else "needs a package"
        others = ", or give weights that are not quantised" if quantised else ""
        raise Unavailable(
            f"{source} {what}: {_first(error)}", f"install what is missing{others}"
        ) from None
    except UnpicklingError:
        raise InputError(
            f"the weights of {source} hold more than tensors: objects of Python, never made here",
            "expected tensors alone, as in .safetensors",
        ) from None
    except Exception as error:  # whatever code and files of others come up with
        raise InputError(
            f"transformers cannot load {source}: {_first(error)}",
            "it loads what AutoModel.from_pretrained loads",
        ) from None


def _first(error: Exception) -> str:
    """Return the first line of what an error says, and the next where it announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__


# -- what it reads ------------------------------------------------------------------------------


def takes(loaded: Loaded) -> frozenset[str]:
    """Return the names of what the model can be given."""
    return frozenset(signature(loaded.body.forward).parameters)


def demand(loaded: Loaded, option: str) -> str:
    """Return what the model calls a text, an image or audio; InputError where it takes none."""
    known = takes(loaded)
    found = next((name for name in KINDS[option] if name in known), None)
    if found is None:
        others = [f"--{one}" for one, names in KINDS.items() if known & {*names}]
        own = "run it yourself: with attncli.capture(model) as seen: …"
        raise InputError(
            f"{type(loaded.model).__name__} takes no {option}",
            f"it takes {' and '.join(others)}" if others else own,
        )
    return found


def is_of_two(loaded: Loaded) -> bool:
    """Whether the model has an encoder for texts and another one, and needs not both."""
    return hasattr(loaded.body, ALONE["input_ids"])


def first_token(loaded: Loaded) -> int:
    """Return what a decoder begins with."""
    config = loaded.model.config
    named = (getattr(config, one, None) for one in ("decoder_start_token_id", "bos_token_id"))
    return int(next((one for one in named if one is not None), 0))


def read_texts(loaded: Loaded, texts: Sequence[str]) -> dict[str, Any]:
    """Return what the model is given for texts: a batch, padded as its tokenizer pads.

    Special tokens are the tokenizer's. Raises InputError without a tokenizer, for an empty text
    and for one that is longer than the model's positions.
    """
    demand(loaded, "text")
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        why = f": {_first(loaded.unread)}" if loaded.unread else ""
        raise (Unavailable if isinstance(loaded.unread, ImportError) else InputError)(
            f"{loaded.source} has no tokenizer that can be read{why}",
            "give token ids in place of --text: --ids 5,9,2, or a file of them, (L) or (B, L)",
        )
    empty = next((n for n, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        which = f" number {empty + 1}" if len(texts) > 1 else ""
        raise InputError(f"the text{which} is empty", "give --text some words")
    if tokenizer.pad_token is None and len(texts) > 1:  # hidden by the mask: any will do
        any_token = tokenizer.convert_ids_to_tokens(0)
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or any_token
    made = tokenizer(list(texts), padding=len(texts) > 1, return_tensors="np", verbose=False)
    ids = np.asarray(made["input_ids"])
    _demand_known(loaded, ids, f"the tokenizer of {loaded.source} makes the token")
    return _given(loaded, ids, np.asarray(made["attention_mask"]), made)


def read_ids(loaded: Loaded, ids: Array) -> dict[str, Any]:
    """Return what the model is given for token ids, integers ``(L)`` or ``(B, L)``."""
    demand(loaded, "text")
    whole = ids.dtype.kind in "iuf" and np.array_equal(ids, np.floor(ids))
    if ids.ndim not in (1, 2) or not ids.size or not whole:
        raise InputError(f"ids are {ids.dtype} {ids.shape}", "expected integers (L) or (B, L)")
    _demand_known(loaded, ids, "ids hold")
    ids = np.atleast_2d(ids).astype(np.int64)
    return _given(loaded, ids, np.ones_like(ids), {})


def _given(loaded: Loaded, ids: Array, mask: Array, made: Mapping[str, Any]) -> dict[str, Any]:
    torch = import_module("torch")
    most = positions_of(loaded)
    if ids.shape[1] > most:
        raise InputError(
            f"the text has {counted(ids.shape[1], 'token')}, and {type(loaded.model).__name__} "
            f"has {most:,} positions", "shorten it",
        )  # fmt: skip
    if not ids.shape[1]:
        raise InputError("the text has no tokens", "give --text some words")
    known = takes(loaded)
    given = {"input_ids": ids, "attention_mask": mask} if "input_ids" in known else {}
    if "token_type_ids" in made:
        given["token_type_ids"] = np.asarray(made["token_type_ids"])
    if DECODED in known:  # an encoder–decoder reads what it shall write, shifted right
        start = first_token(loaded)
        if not (ids[:, 0] == start).all():
            first = np.full((len(ids), 1), start)
            ids = np.concatenate([first, ids[:, :-1]], 1)
            mask = np.concatenate([np.ones_like(first), mask[:, :-1]], 1)
        given |= {DECODED: ids, "decoder_attention_mask": mask}
    device = loaded.model.device
    return {name: torch.from_numpy(np.asarray(a, np.int64)).to(device) for name, a in given.items()}


def _demand_known(loaded: Loaded, ids: Array, found: str) -> None:
    """Raise InputError for ids that the model has no token for."""
    rows = _vocabulary(loaded)
    wrong = ids[(ids < 0) | (ids >= rows)]
    if wrong.size:
        raise InputError(f"{found} {wrong[0]:.20g}", f"the model has the tokens 0 to {rows - 1}")


def _vocabulary(loaded: Loaded) -> int:
    """Return how many tokens the model knows."""
    if rows := getattr(_config_of_text(loaded, decoder=True), "vocab_size", 0):
        return int(rows)
    with suppress(NotImplementedError, AttributeError):
        return int(loaded.model.get_input_embeddings().weight.shape[0])
    return UNSAID  # characters, as CANINE reads


def _config_of_text(loaded: Loaded, **which: bool) -> Any:
    config = loaded.model.config
    try:
        return config.get_text_config(**which)
    except ValueError:  # there are two, as in MusicGen, whose decoder reads codes of sound
        return getattr(config, "text_encoder", config)


def positions_of(loaded: Loaded) -> int:
    """Return how many tokens the model has positions for."""
    text = _config_of_text(loaded)
    said = (getattr(text, name, None) for name in POSITIONS)
    most = next((one for one in said if one), UNSAID)
    for name, module in loaded.model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None):
            most = min(most, module.num_embeddings - module.padding_idx - 1)  # RoBERTa's
    return int(most)


def run(loaded: Loaded, given: Mapping[str, Any]) -> None:
    """Run the model once, without the head of its task and without gradients.

    Raises InputError for what the model does not take.
    """
    torch, body = import_module("torch"), loaded.body
    alone = [way for name, way in ALONE.items() if name in given]
    entry = getattr(body, alone[0]) if is_of_two(loaded) and len(alone) == 1 else body
    with torch.inference_mode(), quiet(_transformers()):
        try:
            entry(**given)
        except (AttnError, MemoryError):
            raise
        except Exception as error:  # whatever code of others comes up with
            if _is_ours(error.__traceback__):
                raise
            shapes = (f"{name} {tuple(given[name].shape)}" for name in NAMES if name in given)
            raise InputError(
                f"{type(loaded.model).__name__} does not run on {', '.join(shapes)}: "
                f"{_first(error)}", "that is what the model's own code says",
            ) from None  # fmt: skip


def _is_ours(traceback: Any) -> bool:
    """Whether an exception came out of code of this package that the model called."""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
        if str(traceback.tb_frame.f_globals.get("__name__", "")).startswith("attncli."):
            return True
    return False


def text_of(said: str) -> str:
    """Return a text: what was said, or what the file behind an @ holds."""
    if not said.startswith("@"):
        return said
    try:
        return read_text(said[1:], "a text").rstrip("\n")
    except FileError as error:
        raise FileError(
            error.message,
            "@FILE is a file that holds the text; a text that begins with @ goes into one",
        ) from None

"""Images and sounds for a model of transformers, and all that it is given together.

Pixels and features are made by the folder's own image processor and feature extractor; tensors
that are those already are taken as they are.
"""

from __future__ import annotations

import os
import shlex
import warnings
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from attncli import files
from attncli.errors import FileError, InputError, Unavailable
from attncli.files.formats import SUFFIXES
from attncli.files.formats.entry import demand_regular
from attncli.files.references import split
from attncli.studies.model import loading
from attncli.studies.model.folder import FOUND
from attncli.studies.model.loading import DECODED, Loaded, demand, takes

Array = np.ndarray[Any, np.dtype[Any]]

#: Bytes of a sample of PCM, what they are, and the value that is 1.
PCM = {1: ("u1", 1 << 7), 2: ("<i2", 1 << 15), 4: ("<i4", 1 << 31)}


@dataclass(frozen=True, eq=False)
class Media:
    """What one option gives the model: ``arrays`` by the names it has for them."""

    arrays: Mapping[str, Array]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def together(loaded: Loaded, words: Mapping[str, Any], *media: Media) -> dict[str, Any]:
    """Return what the model is given; a decoder that is given no words gets its start token.

    Raises InputError where the model needs something else besides, and for a batch of several
    sizes.
    """
    torch, model = import_module("torch"), loaded.model
    given = dict(words)
    for one in media:
        for name, array in one.arrays.items():
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(model.device)
            given[name] = tensor.to(model.dtype) if tensor.is_floating_point() else tensor
    main = loaded.body.main_input_name
    option = next((option for option, names in loading.KINDS.items() if main in names), None)
    if option and main not in given and not loading.is_of_two(loaded):
        raise InputError(
            f"{type(model).__name__} needs {option}",
            f"add --{option} {'TEXT' if option == 'text' else 'FILE'}",
        )
    sizes = {name: len(given[name]) for name in loading.NAMES if name in given}
    if len({*sizes.values()}) > 1 and not loading.is_of_two(loaded):
        raise InputError(
            "what the model is given differs in number: "
            + ", ".join(f"{name} {n}" for name, n in sizes.items()),
            "give as many texts as images or recordings",
        )
    if DECODED in takes(loaded) and DECODED not in given and media:
        first = loading.first_token(loaded)
        given[DECODED] = torch.full((next(iter(sizes.values())), 1), first, device=model.device)
    return given


def _is_tensor(ref: str) -> bool:
    return os.path.splitext(split(ref)[0])[1].lower() in SUFFIXES


def _said_how(loaded: Loaded, kind: str, what: str) -> Any:
    """Return the folder's own ``kind`` of processor, a class of transformers by name."""
    transformers = import_module("transformers")
    with loading.quiet(transformers):
        try:
            return getattr(transformers, kind).from_pretrained(loaded.folder, **FOUND)
        except ImportError as error:
            raise Unavailable(str(error).strip().splitlines()[0], "install it") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{loaded.source} does not say how to read {what} (preprocessor_config.json)",
                "give what the model itself takes, as .npy",
            ) from None


def _joined(name: str, arrays: Sequence[Array]) -> Array:
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        raise InputError(
            f"{name} of several shapes: {', '.join(str(a.shape) for a in arrays)}",
            "a batch needs one shape",
        )
    return np.concatenate(arrays)


# -- images -----------------------------------------------------------------------------------


def read_images(loaded: Loaded, refs: Sequence[str]) -> Media:
    """Return the images in files; tensors ``(C, H, W)`` or ``(B, C, H, W)`` are pixel values.

    Raises InputError for a model that takes none, FileError for what is no image, Unavailable
    without Pillow.
    """
    name = demand(loaded, "image")
    _demand_own_sequence(loaded)
    notes: list[str] = []
    warned: list[str] = []
    found: list[Array] = []
    processor: Any = None
    for ref in refs:
        if _is_tensor(ref):
            found.append(_pixels(ref, loaded))
            notes.append(f"{ref} is taken as {name}")
            continue
        image = _image(ref, warned)
        processor = processor or _said_how(loaded, "AutoImageProcessor", "images")
        with loading.quiet(import_module("transformers")):
            found.append(np.asarray(processor(images=image, return_tensors="np")[name]))
    return Media({name: _joined(name, found)}, tuple(notes), tuple(warned))


def _demand_own_sequence(loaded: Loaded) -> None:
    """Raise InputError for a model that puts images between words."""
    config = loaded.model.config
    if any(hasattr(config, name) for name in ("image_token_id", "image_token_index")):
        raise InputError(
            f"{type(loaded.model).__name__} puts images between the words of a text, which --image "
            "does not do", "run it yourself: with attncli.capture(model) as seen: …",
        )  # fmt: skip


def _pixels(ref: str, loaded: Loaded) -> Array:
    array = files.read_tensor(ref)
    channels = getattr(loaded.model.config, "num_channels", array.shape[-3:][0])
    if array.ndim not in (3, 4) or array.dtype.kind != "f" or array.shape[-3] != channels:
        raise InputError(
            f"{ref} holds {array.dtype} {array.shape}",
            f"expected pixel values as floats, ({channels}, H, W) or (B, {channels}, H, W)",
        )
    return array.reshape(-1, *array.shape[-3:])


def _image(path: str, warned: list[str]) -> Any:
    """Return the picture in a file, upright, in RGB."""
    try:
        pil, ops = import_module("PIL.Image"), import_module("PIL.ImageOps")
    except ImportError:
        raise Unavailable(
            f"{path}: an image needs Pillow", "pip install pillow, or give pixel values as .npy"
        ) from None
    demand_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            with pil.open(path) as image:
                if getattr(image, "n_frames", 1) > 1:
                    warned.append(f"{path} has {image.n_frames} frames: the first one is read")
                if image.has_transparency_data:
                    warned.append(f"{path}: its transparency is not read")
                return ops.exif_transpose(image).convert("RGB")
    except pil.UnidentifiedImageError:
        raise FileError(
            f"{path} is no image that Pillow can read", "expected an image, or pixel values as .npy"
        ) from None
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError,
            pil.DecompressionBombWarning) as error:  # fmt: skip
        raise FileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


# -- sounds -----------------------------------------------------------------------------------


def read_audio(loaded: Loaded, refs: Sequence[str]) -> Media:
    """Return the recordings in WAV files of PCM; a tensor ``(T)`` has samples, too.

    Any other tensor is what the model takes: input values ``(B, T)``, input features ``(M, T)`` or
    ``(B, M, T)``. Raises InputError for a model that takes none, for another rate than its own,
    and for a recording that it would not hear to the end; FileError for what is no such file.
    """
    name = demand(loaded, "audio")
    notes: list[str] = []
    warned: list[str] = []
    ready = {ref: files.read_tensor(ref) for ref in refs if _is_tensor(ref)}
    ready = {ref: array for ref, array in ready.items() if array.ndim > 1}
    if ready:
        if len(ready) < len(refs):
            raise InputError(
                "samples and features are both given", "give recordings, or features alone"
            )
        batched = 2 if name == "input_values" else 3
        arrays = [array if array.ndim >= batched else array[None] for array in ready.values()]
        notes += [f"{ref} is taken as {name}" for ref in ready]
        return Media({name: _joined(name, arrays)}, tuple(notes))
    extractor = _said_how(loaded, "AutoFeatureExtractor", "sounds")
    rate = int(extractor.sampling_rate)
    sounds = [_samples(ref, rate, notes, warned) for ref in refs]
    most = _longest(extractor)
    for ref, samples in zip(refs, sounds, strict=True):
        seconds = most and f"{most / rate:g}"
        if most is not None and len(samples) > most:
            raise InputError(
                f"{ref} lasts {len(samples) / rate:.4g} s, and {type(loaded.model).__name__} hears "
                f"{seconds} s", f"cut it: ffmpeg -i {shlex.quote(ref)} -t {seconds} OUT.wav",
            )  # fmt: skip
    padded = {} if most else {"padding": True}  # those with a limit pad up to it
    with loading.quiet(import_module("transformers")):
        made = extractor(sounds, sampling_rate=rate, return_tensors="np", **padded)
    known = takes(loaded)
    return Media(
        {n: np.asarray(a) for n, a in made.items() if n in known}, tuple(notes), tuple(warned)
    )


def _longest(extractor: Any) -> int | None:
    """Return how many samples an extractor keeps, where it cuts off what is longer."""
    for name in ("n_samples", "nb_max_samples"):
        if hasattr(extractor, name):
            return int(getattr(extractor, name))
    frames = getattr(extractor, "max_length", None)  # of 10 ms
    return int(frames) * int(extractor.sampling_rate) // 100 if frames else None


def _samples(ref: str, rate: int, notes: list[str], warned: list[str]) -> Array:
    """Return the samples of a recording, float32 ``(T)``, full scale 1."""
    if _is_tensor(ref):
        array = files.read_tensor(ref)
        if array.dtype.kind != "f" or not array.size:
            raise InputError(
                f"{ref} holds {array.dtype} {array.shape}", "expected samples as floats, (T)"
            )
        notes.append(f"{ref} is taken as samples at {rate:,} Hz")
        return array.astype(np.float32)
    demand_regular(ref)
    convert = f"ffmpeg -i {shlex.quote(ref)} -ac 1 -ar {rate} -c:a pcm_s16le OUT.wav"
    try:
        with wave.open(ref, "rb") as stream:
            own, width, channels = (
                stream.getframerate(), stream.getsampwidth(), stream.getnchannels()
            )  # fmt: skip
            raw = stream.readframes(stream.getnframes())
    except (wave.Error, EOFError) as error:
        raise FileError(f"{ref} is no WAV file of PCM: {error}", f"make one: {convert}") from None
    except OSError as error:
        raise FileError(f"{ref}: {(error.strerror or str(error)).lower()}") from None
    if own != rate:
        raise InputError(f"{ref} has {own:,} Hz, and the model hears {rate:,}", convert)
    samples = _decoded(raw[: len(raw) // (width * channels) * width * channels], width)
    if not samples.size:
        raise InputError(f"{ref} holds no samples", "expected a recording")
    if channels > 1:
        warned.append(f"{ref}: its {channels} channels are averaged")
    return np.asarray(samples.reshape(-1, channels).mean(1, dtype=np.float32))


def _decoded(raw: bytes, width: int) -> Array:
    """Return bytes of PCM as floats: 8 bits are unsigned, others signed."""
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        raw, width = wide.tobytes(), 4
    kind, one = PCM[width]
    samples: Array = np.frombuffer(raw, kind).astype(np.float32)
    samples /= one
    if width == 1:
        samples -= 1
    return samples

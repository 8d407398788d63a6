"""Published weights, read into an encoder of this toolkit, so that they can be probed, compared and exported.

torchvision's files, and checkpoints of MoCo, SimSiam, MEC, Matrix-SSL, Barlow Twins, VICReg, DINO, VISSL and their
like differ in what they wrap around the encoder. Instead of a list of wrappings, the file is searched for a place
where every weight of the encoder is.
"""

from __future__ import annotations

import argparse
import codecs
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mce_llm.running.messages import cause
from mce_llm.vision.exporting.errors import ForeignWeightsError
from mce_llm.vision.models.backbone_files import load_weights

# Words in the names of averaged copies: MoCo's encoder_k and momentum_encoder, MEC's and DINO's teacher, BYOL's target.
_AVERAGED = re.compile(r"(^|[._])(encoder_k|momentum|teacher|target|ema)([._]|$)")
_COUNTER = "num_batches_tracked"
_SHOWN = 6
_BEGINNINGS = (
    b"PK",
    b"\x80",
)  # of a zip file, which torch.save writes, and of a pickle, which it used to write
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # which torch puts into its messages


def read_foreign(path: Path | str) -> dict[str, Tensor]:
    """Every tensor in a file, under its path in it (`state_dict.module.encoder_q.conv1.weight`).

    Args:
        path: A .safetensors file, or one that torch.save wrote. Nothing in it is run as code.

    Returns:
        The tensors.

    Raises:
        ForeignWeightsError: It cannot be read, or holds no tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "a folder; name the file of weights" if path.is_dir() else "not there"
        raise ForeignWeightsError(f"{path} is {what}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # Many checkpoints keep their command line, a plain record that does nothing when it is made.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ForeignWeightsError(f"{path} cannot be read: {cause(error)}") from error
    except Exception as error:  # the unpickler raises any type for what is no pickle
        if (other := _no_checkpoint(path)) is not None:
            raise ForeignWeightsError(f"{path} is {other}, and no file that torch.save wrote") from None
        told = _COLOURS.sub("", cause(error))
        if not isinstance(error, pickle.UnpicklingError):
            raise ForeignWeightsError(f"{path} cannot be read: {told}") from error
        raise ForeignWeightsError(
            f"{path} holds more than tensors and plain values, and could run code if it were loaded ({told}); "
            "in a place where you trust it, load it with torch.load and save its state dict again"
        ) from error
    found = dict(_tensors(content))
    if not found:
        raise ForeignWeightsError(f"{path} holds no tensors by name")
    return found


def _no_checkpoint(path: Path) -> str | None:
    """What a file is that does not begin as those of torch.save; None where it does."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, whose file is still to be fetched (git lfs pull)"
    if head.startswith(_BEGINNINGS):
        return None
    try:
        text = (
            codecs.getincrementaldecoder("utf-8")().decode(head).strip()
        )  # which may end within a character
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter in "\n\r\t" for letter in text):
        kind = "a web page" if text.lower().startswith(("<!doctype", "<html")) else "text"
        return f"{kind} (it begins with {text[:40]!r})"
    return f"of an unknown kind (it begins with the bytes {head[:8].hex(' ')})"


def import_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    prefix: str | None = None,
    averaged: bool | None = None,
) -> str:
    """Fill an encoder from someone else's weights.

    Of a trained encoder and its averaged copy, the one is taken whose results are published: the teacher where the file
    calls them student and teacher, as those of the DINO family do (DINO, iBOT, EsViT, DINOv2), the trained one elsewhere
    (MoCo, BYOL, MEC, Matrix-SSL).

    Args:
        module: The encoder, without its classifier.
        tensors: What `read_foreign` found.
        source: What to call the file.
        prefix: What stands before the encoder's names, where several encoders are in the file; found by default.
        averaged: Of several encoders, take the averaged one (teacher, momentum encoder), or the trained one; by default as
            above.

    Returns:
        The prefix.

    Raises:
        ForeignWeightsError: The encoder is nowhere in the file, in several places, or in part.
        BackboneFileError: Weights have other shapes, or are not finite.
    """
    own = module.state_dict()
    names = _numbered_children(module)
    places = {
        place: _under(tensors, place, names if numbered else {})
        for place, numbered in _places(tensors, own, names)
    }
    if prefix is not None:
        prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        if prefix not in places:
            raise ForeignWeightsError(
                f"no encoder of this kind stands under {prefix!r} in {source}; {_what_is_there(tensors, places)}"
            )
    elif not places:
        raise ForeignWeightsError(
            f"no encoder of this kind is in {source}; {_what_is_there(tensors, places)}"
        )
    else:
        prefix = _choose(list(places), source, averaged)
    weights = places[prefix]
    _check_whole(own, weights, prefix, source)
    for name, value in own.items():
        if name.endswith(_COUNTER):
            weights.setdefault(name, value)
    load_weights(module, {name: weights[name] for name in own}, f"{source} under {prefix!r}")
    return prefix


def _tensors(content: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested mappings; an optimizer's state, which is numbered, and lists are passed over."""
    if isinstance(content, Tensor):
        if path:
            yield path, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(name, str):
                yield from _tensors(value, f"{path}.{name}" if path else name)


def _numbered_children(module: nn.Module) -> dict[str, str]:
    """The names of children by their number, as in `Sequential(*encoder.children())`, which lightly's examples keep."""
    return {str(number): name for number, (name, _) in enumerate(module.named_children())}


def _places(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Mapping[str, str]
) -> Iterator[tuple[str, bool]]:
    """Prefixes under which the encoder's first and last weight are, and whether its children are numbered there."""
    wanted = [name for name in own if not name.endswith(_COUNTER)]
    ends = (wanted[0], wanted[-1])
    numbers = {name: number for number, name in names.items()}
    for numbered in (False, True):
        first, last = (_with_number(name, numbers) if numbered else name for name in ends)
        if first is None or last is None:
            continue
        for key in tensors:
            if key == first or key.endswith(f".{first}"):
                place = key.removesuffix(first)
                if f"{place}{last}" in tensors:
                    yield place, numbered


def _with_number(name: str, numbers: Mapping[str, str]) -> str | None:
    child, dot, rest = name.partition(".")
    return f"{numbers[child]}{dot}{rest}" if child in numbers else None


def _under(tensors: Mapping[str, Tensor], place: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    found = {}
    for key, value in tensors.items():
        if key.startswith(place):
            child, dot, rest = key.removeprefix(place).partition(".")
            found[f"{names.get(child, child)}{dot}{rest}"] = value
    return found


def _choose(places: Sequence[str], source: str, averaged: bool | None) -> str:
    """The only place, or of several the only one of the kind that is wanted."""
    kinds = {place: _AVERAGED.search(place) is not None for place in places}
    if averaged is None:
        words = {word for place in places for word in re.split(r"[._]", place)}
        averaged = len(places) > 1 and {"student", "teacher"} <= words
    fitting = [place for place, kind in kinds.items() if kind == averaged]
    if averaged and not fitting:
        raise ForeignWeightsError(
            f"{source} holds no averaged encoder, only {_listed(places)}; leave use_teacher out, or give its prefix"
        )
    if len(places) == 1:
        return places[0]
    if len(fitting) != 1:
        raise ForeignWeightsError(
            f"{source} holds several encoders, {_listed(places)}; say which with --prefix, such as "
            f"--prefix {places[0].rstrip('.') or repr('')}"
        )
    return fitting[0]


def other_encoders(module: nn.Module, tensors: Mapping[str, Tensor], taken: str) -> list[str]:
    """Prefixes of further encoders of this kind in a file, beside the one that was taken.

    Args:
        module: The encoder.
        tensors: What `read_foreign` found.
        taken: What `import_weights` gave.

    Returns:
        The prefixes, without the point at their ends.
    """
    places = dict.fromkeys(
        place for place, _ in _places(tensors, module.state_dict(), _numbered_children(module))
    )
    return [place.rstrip(".") for place in places if place != taken]


def _check_whole(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], prefix: str, source: str) -> None:
    """A deeper encoder holds all names of a shallower one, so names that it has more in the same parts are looked for."""
    missing = [name for name in own if name not in weights and not name.endswith(_COUNTER)]
    if missing:
        raise ForeignWeightsError(
            f"{source} holds the encoder under {prefix!r} in part: {len(missing)} of its {len(own)} weights are missing "
            f"({_listed(missing)}); is it of another depth?"
        )
    parts = {name.partition(".")[0] for name in own}
    more = [name for name in weights if name not in own and name.partition(".")[0] in parts]
    if more:
        raise ForeignWeightsError(
            f"{source} holds another encoder under {prefix!r}: {len(more)} weights more ({_listed(more)}); is it of "
            "another depth or kind?"
        )


def _what_is_there(tensors: Mapping[str, Tensor], places: Mapping[str, Any]) -> str:
    if places:
        return f"there is one under {_listed(list(places))}"
    return f"the file has {len(tensors)} tensors, such as {_listed(list(tensors))}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")

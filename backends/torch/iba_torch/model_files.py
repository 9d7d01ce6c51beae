"""Models in files: what `torch.export.save` writes, ONNX, and folders of Hugging Face."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iba_core.errors import IBAError, MissingDependencyError, StateError

_TENSOR = re.compile(r"(weight|tensor)_\d+")
"""Names of the files that hold nothing but numbers."""
_IMPORTING = re.compile(r"__enum__|default_factory_module")
"""What makes PyTorch import a module to make the structure of inputs and outputs."""
_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'")
"""A size that an exported program leaves open."""

_FUNCTIONS = {
    *("Symbol", "Integer", "Rational", "positive", "integer", "nonnegative", "nonzero", "True", "False"),
    *("Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv"),
    *("Eq", "Ne", "Ge", "Gt", "Le", "Lt"),
}
"""What expressions of sizes may name. PyTorch evaluates them as Python."""

_FILES = (".pt2", ".onnx", ".pt", ".pth", ".ts")

_SCRIPTED = (
    "is a TorchScript program, whose layers cannot be reached; give the module that it was made of, or save "
    "it with torch.export.save"
)
_MOST = 2**26
"""Bytes of the description of a program."""


def load_file(path: Path) -> nn.Module | None:
    """Load the model in a file or folder; None if its name is not that of a PyTorch model.

    Args:
        path: a ``.pt2`` file of `torch.export.save`, an ``.onnx`` file, or a folder with the ``config.json``
            of a Hugging Face model and its weights as safetensors.

    Returns:
        A module whose layers have the names that they had in the model; of ONNX, those of its operations.

    Raises:
        StateError: it is damaged, holds code, was exported for one batch size, is a scripted program, or has
            an operation of ONNX that cannot be converted.
        MissingDependencyError: a folder of Hugging Face needs the package transformers, an ONNX file
            onnx2torch.
    """
    if path.suffix in _FILES and not path.is_file():
        raise StateError(f"there is no model file {str(path)!r}")
    if path.suffix == ".pt2":
        return _exported(path)
    if path.suffix == ".onnx":
        return _converted(path)
    if path.suffix in _FILES:
        if _is_scripted(path):
            raise StateError(f"model={str(path)!r} {_SCRIPTED}")
        raise StateError(
            f"model={str(path)!r} holds weights, or an object of Python that only its own program can make; "
            "make the model in Python and give the object"
        )
    if (path / "config.json").is_file():
        return _of_hugging_face(path)
    return None


def _is_scripted(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _converted(path: Path) -> nn.Module:
    """The module that onnx2torch makes of an ONNX file."""
    try:
        from onnx2torch import convert
    except ImportError as error:
        raise MissingDependencyError(
            f"model={str(path)!r} is an ONNX file, which needs the package onnx2torch and torchvision: "
            f"pip install iba-core[onnx] ({error})"
        ) from error
    try:
        module: nn.Module = convert(path)
    except Exception as error:  # whatever the readers of a format raise for damaged files
        raise StateError(f"model={str(path)!r} cannot be converted by onnx2torch: {error}") from error
    return module.eval()


def _exported(path: Path) -> nn.Module:
    """The modules of an exported program, which is loaded only if nothing in it runs code."""
    try:
        content = _harmless(path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the file's format
            program = torch.export.load(BytesIO(content))
            _require_any_batch(program)
            module = torch.export.unflatten(program)
    except IBAError as error:
        raise StateError(f"model={str(path)!r} {error}") from error
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())[:200]
        raise StateError(f"model={str(path)!r} is no program of torch.export.save: {reason}") from error
    return module.requires_grad_(False)


def _harmless(content: bytes) -> bytes:
    """A program that PyTorch reads without unpickling objects or evaluating more than sizes.

    Returns:
        An archive of what has been checked: PyTorch's own reader may see something else in another one.

    Raises:
        StateError: it would do more.
    """
    checked = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as archive, zipfile.ZipFile(checked, "w") as copy:
        names = archive.namelist()
        # PyTorch's own reader asks for names in any case, and takes the first of several.
        if len({name.casefold() for name in names}) < len(names):
            raise StateError("holds two files of one name")
        for name in names:
            if name.casefold().endswith(".json"):
                if archive.getinfo(name).file_size > _MOST:
                    raise StateError("has a description of more than 64 MB")
                for key, value in _entries(json.loads(archive.read(name))):
                    # Other objects than tensors are unpickled, whatever `use_pickle` says.
                    if key == "path_name" and not _TENSOR.fullmatch(str(value)):
                        raise StateError(f"holds {str(value)[:80]!r}, an object that may run code")
                    if key in ("in_spec", "out_spec") and _IMPORTING.search(str(value)):
                        raise StateError("names modules that it would import")
                    if key == "use_pickle" and value:
                        raise StateError("holds pickled objects, which may run code; export it without")
                    if key == "guards_code" and value:
                        raise StateError("holds code that checks its inputs; export it without")
                    if key == "expr_str" and not _is_size(value):
                        raise StateError(f"holds an expression that is no size, {str(value)[:80]!r}")
            elif "/sample_inputs/" in name:
                # PyTorch itself would go on to unpickle what this refuses.
                torch.load(BytesIO(archive.read(name)), weights_only=True)
            elif name.casefold().endswith((".pt", ".pkl", ".pth")) or "custom_obj" in name.casefold():
                raise StateError(f"holds {name!r}, a pickled object that may run code")
            copy.writestr(name, archive.read(name))
    return checked.getvalue()


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested dicts and lists, with its value."""
    if isinstance(tree, dict):
        yield from tree.items()
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for child in children:
        yield from _entries(child)


def _is_size(expression: Any) -> bool:
    """Whether a text is an expression of whole numbers and open sizes."""
    if not isinstance(expression, str):
        return False
    rest = _SYMBOL.sub("Symbol(0", expression)
    return set(re.findall(r"[A-Za-z_]\w*", rest)) <= _FUNCTIONS and not re.search(r"[^\w\s+\-*/(),=]", rest)


def _require_any_batch(program: torch.export.ExportedProgram) -> None:
    """Check that a program takes any number of images: noisy copies pass it together.

    Raises:
        StateError: it takes one number only.
    """
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.ndim and isinstance(value.shape[0], int):
                raise StateError(
                    f"takes batches of {value.shape[0]} only; export it with "
                    "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), for one input"
                )


def _of_hugging_face(path: Path) -> nn.Module:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"model={str(path)!r} has a config.json that cannot be read") from error
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise StateError(f"model={str(path)!r} has a config.json that names no architecture")
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"model={str(path)!r} is a folder of Hugging Face; it needs pip install transformers"
        ) from error
    kind = getattr(transformers, names[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise StateError(f"model={str(path)!r} has the architecture {names[0]!r}, which transformers lacks")
    try:
        model: nn.Module = kind.from_pretrained(path, local_files_only=True, use_safetensors=True)
    except Exception as error:  # a damaged folder may raise anything
        reason = " ".join(str(error).split())[:200]
        raise StateError(f"model={str(path)!r} cannot be loaded: {reason}") from error
    return model.eval()

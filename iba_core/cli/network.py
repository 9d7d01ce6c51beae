"""The network that a command works on, and the preprocessing that it expects."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from iba_core.cli.quiet import quiet_start
from iba_core.datasets.targets import find_class
from iba_core.errors import IBAError, InputError, closest
from iba_core.files import shown
from iba_core.framework.adapter import Inputs, ModelAdapter, find_adapter, load_backend, load_model
from iba_core.framework.layout import Layout
from iba_core.pictures.images import Picture, Preprocessing

_SIZE = (224, 224)
_CALLABLE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")
_FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
"""Common names of the frameworks, the preferred framework first."""


@dataclass(frozen=True)
class Network:
    """A model with its preprocessing and the names of its classes.

    Attributes:
        source: name of the model on the command line.
        adapter: adapter of the model.
        preprocessing: converts a picture to the model's input.
        preprocessing_origin: where `preprocessing` comes from, as part of a sentence.
        class_names: names of the model's outputs; None if the model does not name them.
    """

    source: str
    adapter: ModelAdapter
    preprocessing: Preprocessing
    preprocessing_origin: str
    class_names: Sequence[str] | None

    @classmethod
    def load(
        cls,
        source: str,
        backend: str | None = None,
        preset: str | None = None,
        size: tuple[int, int] | None = None,
        classes: Path | None = None,
        device: str | None = None,
    ) -> Network:
        """Load a model and decide how to prepare pictures for it.

        Args:
            source: name of a pretrained network, a model file or folder, or ``package.module:callable``.
            backend: name of the backend; None for the first that can load it.
            preset: name of a preprocessing to use instead of the model's own.
            size: (height, width) of the pictures to use instead of the model's own.
            classes: file with the names of its classes, instead of its own.
            device: device to run on; None for the framework's choice.

        Raises:
            InputError: there is no such model, backend, preprocessing or device, or `classes` cannot be read.
            MissingDependencyError: a package that the model needs is not installed.
        """
        if preset is not None:
            Preprocessing.preset(preset)
        given_names = None if classes is None else read_class_names(classes)
        model, adapter = _load(source, backend)
        if device is not None:
            adapter.place(device)
        preprocessing, origin = _preprocessing(model, adapter, preset, size)
        names = _declared(model, "class_names") if given_names is None else given_names
        return cls(source, adapter, preprocessing, origin, names if _are_names(names) else None)

    @property
    def note(self) -> str:
        """The model and its framework, as they can be shown."""
        return f"{shown(self.source)}, in {self.framework}"

    @property
    def framework(self) -> str:
        """Name and version of the model's framework."""
        name = self.adapter.framework.name
        version = getattr(sys.modules[name], "__version__", "").partition("+")[0]
        return f"{_FRAMEWORKS.get(name, name)} {version}".rstrip()

    def inputs(self, picture: Picture) -> Inputs:
        """Convert one picture to the model's input, a batch of one."""
        return self.preprocessing(picture, self.adapter.data_format)[None]

    def probe(self) -> Inputs:
        """Make the model's input for a picture of noise, a batch of one."""
        height, width = self.preprocessing.size
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return self.adapter.to_inputs(self.inputs(noise))

    def require_fit(self) -> None:
        """Run the model once on a picture of noise, to check that the size is right.

        Raises:
            InputError: the model fails on pictures of this size.
        """
        try:
            self.adapter.predict(self.probe())
        except IBAError:
            raise
        except Exception as error:  # the layers of a model may raise any exception
            height, width = self.preprocessing.size
            raise InputError(
                f"the network fails on a picture of {height} x {width} pixels and "
                f"{self.preprocessing.channels} channels, set the size with --size: "
                f"{type(error).__name__}: {error}"
            ) from error

    def class_name(self, index: int) -> str:
        """Return the name of a class, or ``"class 3"`` if it has no name."""
        if self.class_names is None or not 0 <= index < len(self.class_names):
            return f"class {index}"
        return shown(self.class_names[index])

    def class_label(self, index: int) -> str:
        """Return the index and the name of a class."""
        name = self.class_name(index)
        return name if name == f"class {index}" else f"{index} {name}"

    def class_index(self, target: str | None) -> int | None:
        """Find the index of the class that a user gives by index or name; None for None.

        Raises:
            InputError: no class has that name, or several have.
        """
        return None if target is None else find_class(target, self.class_names)

    @property
    def preprocessing_summary(self) -> str:
        """The preprocessing in a few words."""
        p = self.preprocessing
        low, high = ((value * p.scale - np.array(p.mean)) / p.std for value in (0, 255))
        height, width = p.size
        parts = [f"{width} x {height} pixels"]
        if p.channels == 1:
            parts.append("grey")
        if p.crop_fraction < 1:
            parts.append(f"central {100 * p.crop_fraction:.3g} %")
        parts.append(f"values {low.min():.3g} to {high.max():.3g}")
        return ", ".join(parts)


def read_class_names(path: Path) -> list[str]:
    """Read the names of classes: one in each line, or a list in JSON.

    Raises:
        InputError: the file cannot be read, or holds no names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if text.lstrip().startswith("[") else text.strip().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"classes={str(path)!r} cannot be read: {error}") from error
    if not names or not _are_names(names):
        raise InputError(f"classes={str(path)!r} holds no names; give one in each line, or a list in JSON")
    return [name.strip() for name in names]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read (height, width) from ``"224"`` or from ``"320x240"``, which has the width first.

    Raises:
        InputError: the text has another form.

    Example:
        >>> parse_size("320x240")
        (240, 320)
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if match is None or not all(int(number) for number in match.groups() if number):
        raise InputError(f"size={text!r} must be a number of pixels such as 224, or WIDTHxHEIGHT")
    width, height = int(match[1]), int(match[2] or match[1])
    return height, width


def import_backend(name: str) -> type[ModelAdapter]:
    """Load a backend as `load_backend` does, without the messages that frameworks print at their start."""
    with quiet_start():
        return load_backend(name)


def _load(source: str, backend: str | None) -> tuple[Any, ModelAdapter]:
    if match := _CALLABLE.fullmatch(source):
        return _call(source, match["module"], match["name"], backend)
    try:
        with quiet_start():
            model = load_model(source, backend)
    except InputError as error:
        raise InputError(f"{error}, or package.module:callable") from error
    return model, find_adapter(model)


def _call(source: str, module_name: str, name: str, backend: str | None) -> tuple[Any, ModelAdapter]:
    """Import a model, or call the function that returns it.

    The module is imported as if Python ran in the current folder. It is the user's program, which may raise
    anything, or end itself.
    """
    if backend is not None:
        import_backend(backend)
    with suppress(FileNotFoundError):  # the current folder has been deleted
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)
    try:
        with _of_the_user(source, "cannot be imported", unless=ModuleNotFoundError), quiet_start():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        with _of_the_user(source, "cannot be imported"):
            # It may also be a module that the user's own imports.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
        raise InputError(
            f"model={source!r}: there is no module {error.name!r}, neither in this folder nor installed"
        ) from error
    try:
        with _of_the_user(source, "cannot be found", unless=AttributeError):
            found = attrgetter(name)(module)
    except AttributeError as error:
        raise InputError(f"model={source!r}: {error}; {closest(name, _public(module))}") from error
    if _is_model(found):
        return found, find_adapter(found, backend)
    if not callable(found):
        raise InputError(f"model={source!r} is a {type(found).__name__}, neither a callable nor a model")
    _require_no_arguments(found, source)
    with _of_the_user(source, "fails"):
        model = found()
    return model, find_adapter(model, backend)


@contextmanager
def _of_the_user(
    source: str, what: str, unless: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Run the user's program, and say what it raised."""
    try:
        yield
    except IBAError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, unless):
            raise
        said = f": {error}" if str(error) else ""
        raise InputError(
            f"model={source!r} {what}: {type(error).__name__}{said}; --debug shows the traceback"
        ) from error


def _declared(model: Any, name: str) -> Any:
    """An attribute with which a model tells about itself; None if it does not."""
    try:
        return getattr(model, name, None)
    except Exception as error:  # it may be a property of the user's
        raise InputError(f"the network's {name} fails: {type(error).__name__}: {error}") from error


def _require_no_arguments(function: Callable[..., Any], source: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # built-in functions may have no signature
        return
    try:
        signature.bind()
    except TypeError as error:
        raise InputError(f"model={source!r} cannot be called without arguments: {error}") from error


def _is_model(value: object) -> bool:
    if isinstance(value, (str, os.PathLike)):
        return False
    try:
        find_adapter(value)
    except InputError:
        return False
    return True


def _public(module: object) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _preprocessing(
    model: Any, adapter: ModelAdapter, preset: str | None, size: tuple[int, int] | None
) -> tuple[Preprocessing, str]:
    """Choose the preprocessing, and describe where it comes from."""
    declared = _declared(model, "preprocessing")
    if isinstance(declared, Preprocessing) and preset is None:
        if size is None:
            return declared, "as the network asks for"
        return replace(declared, size=size), "as the network asks for, except for the size"
    shape, channels = _input_geometry(model, adapter)
    if isinstance(declared, Preprocessing):
        shape, channels = declared.size, declared.channels
    preprocessing = Preprocessing.preset(preset or "unit", size or shape or _SIZE, channels)
    if preset is None:
        return (
            preprocessing,
            "assumed, since the network does not say; change it with --preprocess and --size",
        )
    return preprocessing, f"preprocessing {preset!r}, as you ask for"


def _input_geometry(model: Any, adapter: ModelAdapter) -> tuple[tuple[int, int] | None, int]:
    """Read (height, width) or None, and the number of channels, from the model's `input_shape`."""
    shape = None
    with suppress(Exception):  # a model of Keras that has not been called has none
        shape = getattr(model, "input_shape", None)
    if not isinstance(shape, (tuple, list)) or len(shape) != 4:
        return None, 3
    if not all(size is None or isinstance(size, int) for size in shape):
        return None, 3
    image = shape[1:]
    layout = Layout.of(image, adapter.data_format)
    height, width = layout.spatial_shape(image)
    channels = image[layout.channel_axis]
    return (height, width) if height and width else None, channels if channels in (1, 3) else 3


def _are_names(names: Any) -> bool:
    return (
        isinstance(names, Sequence)
        and not isinstance(names, str)
        and all(isinstance(name, str) for name in names)
    )

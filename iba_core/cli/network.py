"""The network that a command works on, and what is known about the pictures it wants."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np

from iba_core.cli.quiet import quiet_start
from iba_core.errors import IBAError, InputError, MissingDependencyError, closest
from iba_core.framework.adapter import Inputs, ModelAdapter, backends, find_adapter, load_backend
from iba_core.framework.layout import Layout
from iba_core.pictures.images import Picture, Preprocessing
from iba_core.zoo.efficientnet_lite import NAME as PRETRAINED

_SIZE = (224, 224)
_CALLABLE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)")
_FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
"""What people call the frameworks, the preferred one first."""


@dataclass(frozen=True)
class Network:
    """A model with what it takes to show it pictures.

    Attributes:
        source: how the user named it.
        adapter: adapter of the model.
        preprocessing: makes the model's input of a picture.
        preprocessing_origin: where `preprocessing` comes from, as part of a sentence.
        class_names: names of the model's outputs; None where it tells none.
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
    ) -> Network:
        """Load a model and decide how to prepare pictures for it.

        Args:
            source: name of a pretrained network, a model file or folder, or ``package.module:callable``.
            backend: name of the backend; None for the first that can load it.
            preset: name of a preprocessing to use in place of the model's own.
            size: (height, width) of the pictures in place of the model's own.

        Raises:
            InputError: there is no such model, backend or preprocessing.
            MissingDependencyError: what it takes to load the model is not installed.
        """
        if preset is not None:
            Preprocessing.preset(preset)
        model, adapter = _load(source, backend)
        declared = getattr(model, "preprocessing", None)
        names = getattr(model, "class_names", None)
        if isinstance(declared, Preprocessing) and preset is None:
            preprocessing, origin = declared, "as the network asks for"
            if size is not None:
                preprocessing, origin = replace(declared, size=size), "as the network asks for, but the size"
        else:
            shape, channels = _input_geometry(model, adapter)
            if isinstance(declared, Preprocessing):
                shape, channels = declared.size, declared.channels
            preprocessing = Preprocessing.preset(preset or "unit", size or shape or _SIZE, channels)
            origin = f"preprocessing {preset!r}, as you ask for"
            if preset is None:
                origin = "assumed, since the network does not say; change it with --preprocess and --size"
        return cls(source, adapter, preprocessing, origin, names if _are_names(names) else None)

    @property
    def framework(self) -> str:
        """Name and version of the model's framework."""
        name = self.adapter.name
        version = getattr(sys.modules[name], "__version__", "").partition("+")[0]
        return f"{_FRAMEWORKS.get(name, name)} {version}".rstrip()

    def inputs(self, picture: Picture) -> Inputs:
        """The model's input for one picture, a batch of one."""
        return self.preprocessing(picture, self.adapter.data_format)[None]

    def probe(self) -> Inputs:
        """The model's input for a picture of noise, a batch of one."""
        height, width = self.preprocessing.size
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return self.adapter.to_inputs(self.inputs(noise))

    def require_fit(self) -> None:
        """Let the model run once on a picture of noise.

        Raises:
            InputError: it cannot take pictures of this size.
        """
        try:
            self.adapter.predict(self.probe())
        except IBAError:
            raise
        except Exception as error:  # a model may raise whatever its layers do
            height, width = self.preprocessing.size
            raise InputError(
                f"the network fails on a picture of {height} x {width} pixels and "
                f"{self.preprocessing.channels} channels, set the size with --size: "
                f"{type(error).__name__}: {error}"
            ) from error

    def class_name(self, index: int) -> str:
        """Name of a class, or ``"class 3"`` where it has none."""
        if self.class_names is None or not 0 <= index < len(self.class_names):
            return f"class {index}"
        return self.class_names[index]

    def class_label(self, index: int) -> str:
        """Index and name of a class."""
        name = self.class_name(index)
        return name if name == f"class {index}" else f"{index} {name}"

    def class_index(self, target: str | None) -> int | None:
        """Index of the class that a user names by index or name; None for None.

        Raises:
            InputError: there is no class of that name, or several.
        """
        if target is None:
            return None
        if re.fullmatch(r"[+-]?\d+", target.strip()):
            return int(target)
        if self.class_names is None:
            raise InputError(f"target={target!r} is a name, but the network names no classes; give an index")
        wanted = target.strip().casefold()
        found = [index for index, name in enumerate(self.class_names) if name.casefold() == wanted]
        if not found:
            near = closest(wanted, dict.fromkeys(name.casefold() for name in self.class_names))
            raise InputError(f"target={target!r} is no class of the network; {near}")
        if len(found) > 1:
            indices = " and ".join(map(str, found))
            raise InputError(f"target={target!r} is the name of the classes {indices}; give the index")
        return found[0]

    @property
    def preprocessing_summary(self) -> str:
        """What becomes of a picture, in a few words."""
        p = self.preprocessing
        low, high = ((value * p.scale - np.array(p.mean)) / p.std for value in (0, 255))
        height, width = p.size
        parts = [f"{width} x {height} pixels"]
        if p.channels == 1:
            parts.append("grey")
        if p.crop_fraction < 1:
            parts.append(f"the middle {100 * p.crop_fraction:.3g} %")
        parts.append(f"values {low.min():.3g} to {high.max():.3g}")
        return ", ".join(parts)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of ``"224"`` or ``"240x320"``, width first as people write it.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if match is None or not all(int(number) for number in match.groups() if number):
        raise InputError(f"size={text!r} must be a number of pixels such as 224, or WIDTHxHEIGHT")
    width, height = int(match[1]), int(match[2] or match[1])
    return height, width


def import_backend(name: str) -> type[ModelAdapter]:
    """`load_backend`, without the notes that frameworks write as they start."""
    with quiet_start():
        return load_backend(name)


def _load(source: str, backend: str | None) -> tuple[Any, ModelAdapter]:
    if match := _CALLABLE.fullmatch(source):
        return _call(source, match["module"], match["name"], backend)
    known = backends()
    order = [name for name in _FRAMEWORKS if name in known] + [n for n in known if n not in _FRAMEWORKS]
    missing: list[str] = []
    for name in [backend] if backend else order:
        try:
            adapter = import_backend(name)
        except MissingDependencyError as error:
            if backend:
                raise
            missing.append(str(error))
            continue
        if (model := adapter.load(source)) is not None:
            return model, adapter(model)
    if missing:
        raise MissingDependencyError(
            f"no backend that works here can load model={source!r}; {'; '.join(missing)}"
        )
    by = f" by the backend {backend!r}" if backend else ""
    raise InputError(
        f"model={source!r} cannot be loaded{by}; "
        f"give {PRETRAINED!r}, a SavedModel folder, a .keras, .h5 or .pb file, or package.module:callable"
    )


def _call(source: str, module_name: str, name: str, backend: str | None) -> tuple[Any, ModelAdapter]:
    """The model of that name, or what the callable of that name returns.

    It is imported as if Python ran in the current folder.
    """
    if backend is not None:
        import_backend(backend)
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        with quiet_start():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module lacks is a fault in there, and keeps its traceback.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"model={source!r}: there is no module {error.name!r}, neither here nor installed"
        ) from error
    try:
        found = attrgetter(name)(module)
    except AttributeError as error:
        raise InputError(f"model={source!r}: {error}; {closest(name, _public(module))}") from error
    if _is_model(found):
        return found, find_adapter(found, backend)
    if not callable(found):
        raise InputError(f"model={source!r} is a {type(found).__name__}, neither a callable nor a model")
    _require_no_arguments(found, source)
    model = found()
    return model, find_adapter(model, backend)


def _require_no_arguments(function: Callable[..., Any], source: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # what is built in may have none that Python knows of
        return
    try:
        signature.bind()
    except TypeError as error:
        raise InputError(f"model={source!r} cannot be called without arguments: {error}") from error


def _is_model(value: object) -> bool:
    try:
        find_adapter(value)
    except InputError:
        return False
    return True


def _public(module: object) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _input_geometry(model: Any, adapter: ModelAdapter) -> tuple[tuple[int, int] | None, int]:
    """(height, width), if the model says so by its `input_shape`, and number of channels."""
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

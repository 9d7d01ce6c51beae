"""A trained readout that comes with the library, and readouts made from files alone.

The packaged one is of EfficientNet-Lite0 with its ImageNet weights, after ``blocks.4``. Its file holds the
network alone, numbers only; the features' distribution is that of the packaged statistics. It says on which
photographs the readout was trained; they do not come with the library.
``python -m benchmarks.packaged_readout --images FOLDER --masks FOLDER --out FILE`` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from iba_core.arguments import require_type
from iba_core.bottleneck.estimator import STATE
from iba_core.errors import InputError
from iba_core.files import as_path
from iba_core.framework.adapter import Model, ModelAdapter, find_adapter
from iba_core.readout.bottleneck import ReadoutBottleneck
from iba_core.readout.state import ReadoutState
from iba_core.state import interpreting, read_state, taken_out, write_state
from iba_core.zoo.statistics import PATH as STATISTICS
from iba_core.zoo.statistics import packaged_statistics

PATH = STATISTICS.with_name("efficientnet_lite0.readout.safetensors")
KIND = "packaged readout"
"""Kind of the state file."""


def packaged_readout(model: Model) -> ReadoutBottleneck:
    """The packaged readout, an `IBAReadout` of the model's framework.

    Args:
        model: EfficientNet-Lite0 with its ImageNet weights, in PyTorch or Keras.

    Returns:
        The readout. In PyTorch it stays attached to the model until its `detach` is called; it changes no
        pass of the model outside of its own contexts.

    Raises:
        InputError: no backend serves the model.
        StateError: the model has other weights.
    """
    adapter = find_adapter(model)
    return _made(adapter, packaged_state(adapter))


def readout_from(path: str | PathLike[str], model: Model) -> ReadoutBottleneck:
    """Make a readout from what `ReadoutBottleneck.save` wrote, with the layers that the file names.

    Args:
        path: the file.
        model: the model that the readout was trained for, in the same framework or with the same names of its
            layers.

    Raises:
        InputError: no backend serves the model.
        StateError: the file is missing, truncated or of another kind.
        LayerError: the model has no such layers.
    """
    return _made(find_adapter(model), ReadoutState.read(as_path(path, "path")))


def _made(adapter: ModelAdapter, state: ReadoutState) -> ReadoutBottleneck:
    backend = type(adapter).__module__.partition(".")[0]
    kind = getattr(import_module(backend), "IBAReadout", None)
    if kind is None:
        raise InputError(f"the backend {backend!r} has no readouts; give a model of PyTorch or Keras")
    readout: ReadoutBottleneck = kind(state.facts["layer"], state.facts["readout_layers"], adapter.model)
    return readout.load_state(state)


def packaged_facts() -> dict[str, Any]:
    """What the file says beside the numbers.

    Returns:
        ``data``, on which it was trained; ``n_samples`` of them; and what
        `iba_core.readout.state.ReadoutState` calls facts.

    Example:
        >>> packaged_facts()["layer"], packaged_facts()["settings"]["gradients"]
        ('blocks.4', True)
    """
    return read_state(PATH, KIND)[1]


def packaged_state(adapter: ModelAdapter, path: Path = PATH) -> ReadoutState:
    """The state of the packaged readout.

    Args:
        adapter: adapter of the model.
        path: of the file.

    Raises:
        StateError: the model has other weights than those that it was trained for.
    """
    statistics, known = packaged_statistics(adapter)
    arrays, facts = read_state(path, KIND)
    with interpreting(path, KIND):
        places = [layer["layer"] for layer in known["layers"]]
        names = [facts["layer"], *facts["readout_layers"]]
        groups = ["bottleneck", *(f"readouts.{number}" for number in range(len(names) - 1))]
        for group, name in zip(groups, names, strict=True):
            moments = taken_out(statistics, places.index(name))
            arrays |= {f"{group}.{key}": moments[key] for key in STATE}
        return ReadoutState.of(arrays, facts)


def write_packaged(path: Path, readout: ReadoutBottleneck, facts: Mapping[str, Any]) -> None:
    """Write the network of a readout of packaged statistics, with further facts."""
    require_type("readout", readout, ReadoutBottleneck, "a trained IBAReadout")
    state = readout.state()
    arrays = {name: array for name, array in state.arrays().items() if name.startswith("network.")}
    write_state(path, arrays, KIND, {**state.facts, **facts})

"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from iba_core.bottleneck.settings import AUTO
from iba_core.errors import InputError
from iba_core.explainer import AUTO_LAYER

MODEL = (
    "efficientnet-lite0; a SavedModel folder; a .keras, .h5 or .pb file; or package.module:callable "
    "returning a model (also searched for in the current folder)."
)
OUT = Path("iba-out")

PRETRAINED = "efficientnet-lite0"
"""The network of those who name none."""

PACKAGED = "packaged"
"""In place of a file: the readout that comes with the library."""


def choices(*values: str) -> Callable[[str], list[str]]:
    """The values of an option that the shell offers, those that begin as the user does."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def parse_beta(text: str) -> float | str:
    """Read a beta, or ``"auto"``.

    Raises:
        InputError: the text is neither.

    Example:
        >>> parse_beta("0.5"), parse_beta("auto")
        (0.5, 'auto')
    """
    try:
        return text if text == AUTO else float(text)
    except ValueError as error:
        raise InputError(f"beta={text!r} must be a number, or auto") from error


def named_layers(names: list[str] | None) -> list[str] | None:
    """The layer of an `iba_core.Explainer`: names, or None, also for the name ``"auto"`` alone.

    Example:
        >>> named_layers([]), named_layers(["auto"]), named_layers(["conv"])
        (None, None, ['conv'])
    """
    return None if names == [AUTO_LAYER] else names or None


_MODELS = choices(PRETRAINED)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, autocompletion=_MODELS)]
ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help=MODEL, autocompletion=_MODELS)]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="torch or tensorflow.",
        show_default="the first that can load the model",
        autocompletion=choices("torch", "tensorflow"),
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Names of the classes: one in each line, or a list in JSON.",
        show_default="the network's own",
    ),
]
Stats = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Statistics from iba estimate.", show_default="of packaged photographs"
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Device to run on, such as cpu or cuda:0.", show_default="the framework's choice"
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes to share the work.", show_default="1; on a cluster, as many as it has room for"
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Ray cluster whose machines share the work: auto, local or HOST:PORT.",
        show_default="this machine alone",
    ),
]
Gpus = Annotated[
    float, typer.Option(help="Share of a GPU for each process on the cluster, such as 0.25.", min=0, max=1)
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Neither take nor keep statistics of the packaged photographs."),
]
Layer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Layer to explain at. iba layers lists them.", show_default="automatic"
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="NAME",
        help="Layer to explain at. iba layers lists them. Given several times, the layers make one map.",
        show_default="automatic",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="PRESET",
        help="unit, imagenet, symmetric or raw.",
        autocompletion=choices("unit", "imagenet", "symmetric", "raw"),
        show_default="the network's own, else unit",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="224 or WIDTHxHEIGHT.",
        show_default="the network's own, else 224",
    ),
]

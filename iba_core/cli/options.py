"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = (
    "efficientnet-lite0; a SavedModel folder; a .keras, .h5 or .pb file; or package.module:callable "
    "returning a model (also searched for in the current folder)."
)
OUT = Path("iba-out")

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="torch or tensorflow.", show_default="the first that can load the model"
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Layer to explain at. iba layers lists them.", show_default="automatic"
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="PRESET",
        help="unit, imagenet, symmetric or raw.",
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

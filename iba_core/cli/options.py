"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODEL = (
    "efficientnet-lite0; a SavedModel folder; a .keras, .h5 or .pb file; or package.module:callable "
    "returning a model (looked for in the current folder, too)."
)
OUT = Path("iba-out")

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="torch or tensorflow.", show_default="the first that can load the network"
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Layer to explain at; iba layers lists them.", show_default="chosen"),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="PRESET",
        help="unit, imagenet, symmetric or raw.",
        show_default="what the network asks for, else unit",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="224 or WIDTHxHEIGHT.",
        show_default="what the network asks for, else 224",
    ),
]

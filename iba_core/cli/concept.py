"""Commands and options of ``iba concept``. The code of a command is imported when the command is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iba_core.cli.options import OUT, PRETRAINED, Backend, ModelOption, Preprocess, Size, Stats, parse_beta

CONCEPT_BETA = 3.0
"""A price of bits at which most of a concept's probability survives, in the networks that were tried."""

concept: typer.Typer = typer.Typer(
    no_args_is_help=True,
    help="Learn a concept from pictures with masks, and find it in other pictures.",
)


@concept.command()
def train(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of pictures.")],
    masks: Annotated[
        Path,
        typer.Argument(
            metavar="MASKS",
            help="Folder with a mask for each picture, of the same name and size: white, opaque or 1 where "
            "the concept is. Or annotations: a .json file of COCO, or a folder of PASCAL VOC's .xml files.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File to write, a .safetensors for iba concept locate.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the concept.", show_default="name of FILE")
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name or number of the concept's category in annotations. With a folder of masks, they are "
            "pictures of labels, such as VOC's SegmentationClass.",
            show_default="the name of the concept",
        ),
    ] = None,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Take COCO's boxes even where there are polygons.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Most annotated pictures with the concept to take, at random.", show_default="all of them"
        ),
    ] = None,
    negatives: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures without the concept.",
            show_default="annotated ones without it, at most as many as with it",
        ),
    ] = None,
    model: ModelOption = PRETRAINED,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Layer to use. Give several to compare them. iba layers lists them.",
            show_default="eight over the whole depth",
        ),
    ] = None,
    backend: Backend = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Folds of the cross-validation; 1 sets a sixth of the pictures aside instead.",
            show_default="5, or the number of pictures if that is less",
        ),
    ] = None,
    ensemble: Annotated[int, typer.Option(help="Hyperplanes to learn and average in each fold.")] = 1,
    epochs: Annotated[int, typer.Option(help="Maximum number of passes over the pictures.")] = 100,
    seed: Annotated[
        int, typer.Option(help="Seed of the split and the start. The same seed gives the same concept.")
    ] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot of the comparison to write, a .png.")
    ] = None,
    preprocess: Preprocess = None,
    size: Size = None,
) -> None:
    """Learn a concept from a folder of pictures and one of masks, and find the layer that knows it best."""
    from iba_core.cli.concept_train import train_concept
    from iba_core.cli.network import parse_size

    train_concept(
        images,
        masks,
        out=out,
        name=name or out.stem,
        category=category,
        boxes=boxes,
        limit=limit,
        negatives=negatives,
        model=model,
        layers=layer,
        backend=backend,
        folds=folds,
        ensemble=ensemble,
        epochs=epochs,
        seed=seed,
        plot=plot,
        preprocess=preprocess,
        size=parse_size(size),
    )


@concept.command()
def locate(
    embedding: Annotated[Path, typer.Argument(metavar="CONCEPT", help="File from iba concept train.")],
    photographs: Annotated[
        list[Path], typer.Argument(metavar="PHOTO", help="Image files, or folders of them.")
    ],
    bits: Annotated[
        bool,
        typer.Option("--bits", help="Also show which places the network needs to see the concept, in bits."),
    ] = False,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Layer whose information --bits counts, at or before that of the concept.",
            show_default="automatic",
        ),
    ] = None,
    beta: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Weight of the information with --bits. A smaller one passes more bits. Or auto.",
            show_default=f"{CONCEPT_BETA:g}",
        ),
    ] = None,
    stats: Stats = None,
    model: ModelOption = PRETRAINED,
    backend: Backend = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = OUT,
    preprocess: Preprocess = None,
    size: Size = None,
) -> None:
    """Find a concept in photographs: write a picture, and print a row of a table, for each."""
    from iba_core.cli.concept_locate import locate_concept
    from iba_core.cli.network import parse_size

    locate_concept(
        embedding,
        photographs,
        bits=bits,
        layer=layer,
        beta=None if beta is None else parse_beta(beta),
        stats=stats,
        model=model,
        backend=backend,
        out=out,
        preprocess=preprocess,
        size=parse_size(size),
    )

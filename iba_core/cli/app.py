"""Commands and options of ``iba``. The code of a command is imported when the command is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import iba_core
from iba_core.bottleneck.settings import KEEP, PRESETS, BottleneckSettings
from iba_core.cli.concept import concept
from iba_core.cli.options import (
    OUT,
    PACKAGED,
    PRETRAINED,
    Backend,
    Classes,
    Device,
    Gpus,
    Jobs,
    Layer,
    Layers,
    Model,
    ModelOption,
    NoCache,
    Preprocess,
    Ray,
    Size,
    Stats,
    choices,
    named_layers,
    parse_beta,
)
from iba_core.framework.allocator import keep_freed_memory

app: typer.Typer = typer.Typer(
    name="iba",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

app.add_typer(concept, name="concept")


@app.callback(invoke_without_command=True)
def iba(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error as well.")] = False,
) -> None:
    """Show which parts of a photograph a network needs for its answer, in bits."""
    if version:
        print(f"iba {iba_core.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        keep_freed_memory()


@app.command()
def explain(
    photographs: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTO", help="Image files, or folders of them with their subfolders."),
    ],
    model: ModelOption = PRETRAINED,
    backend: Backend = None,
    layer: Layers = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Class to explain, index or name. It may be given several times.",
            show_default="the predicted class",
        ),
    ] = None,
    classes: Classes = None,
    activation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the outputs are computed by: softmax, sigmoid or other; or sigmoid_logits, if the "
            "sigmoid is left to the loss.",
            show_default="learnt from the network",
            autocompletion=choices("softmax", "sigmoid", "sigmoid_logits", "other"),
        ),
    ] = None,
    stats: Stats = None,
    beta: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="A fixed weight of the information. A higher beta gives fewer bits; auto finds one.",
            show_default="auto; 10 with --preset paper or instant",
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            help="Find for each photograph the fewest bits that keep this share of its class.",
            show_default=f"{KEEP:g} with beta=auto",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="default; paper, whose steps are longer; or, for rougher maps, fast and instant.",
            autocompletion=choices(*PRESETS),
            show_default="fast for two layers, default for one; paper with --steps or --samples",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the optimiser.", show_default="the preset's")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Noisy copies of the picture in each step.", show_default="the preset's"),
    ] = None,
    readout: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Take the mask that a trained readout gives: rougher maps in a few passes. A file of a "
            "readout's save, or 'packaged' for that of efficientnet-lite0. With --steps, begin there.",
            autocompletion=choices(PACKAGED),
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the noise. The same seed gives the same map.")
    ] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = OUT,
    vmax: Annotated[
        float | None,
        typer.Option(
            help="Bits per pixel at the top of the pictures' colour bars.", show_default="each map's maximum"
        ),
    ] = None,
    jobs: Jobs = None,
    ray: Ray = None,
    gpus: Gpus = 0.0,
    device: Device = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first photograph that cannot be explained.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    with_report: Annotated[
        bool, typer.Option("--report", help="Write a report to look at in a browser, as iba report does.")
    ] = False,
    no_cache: NoCache = False,
    preprocess: Preprocess = None,
    size: Size = None,
) -> int:
    """Explain photographs: write a picture and a file with the numbers for each, and print a table.

    What has been explained with the same settings before is skipped, so that a run that was ended goes on. A
    photograph that cannot be read or explained is reported; the exit code is 1 then.
    """
    from iba_core.cli.explain import Choices, explain_photographs
    from iba_core.cli.network import parse_size

    settings = {
        "steps": steps,
        "samples": samples,
        "beta": None if beta is None else parse_beta(beta),
        "keep": keep,
    }
    BottleneckSettings().chosen(preset, settings)  # a wrong value is refused before the network is read
    return explain_photographs(
        photographs,
        Choices(
            model=model,
            backend=backend,
            layer=named_layers(layer),
            targets=target or [],
            classes=classes,
            activation=activation,
            stats=stats,
            out=out,
            seed=seed,
            preprocess=preprocess,
            size=parse_size(size),
            device=device,
            preset=preset,
            settings={name: value for name, value in settings.items() if value is not None},
            readout=readout,
            vmax=vmax,
            jobs=jobs,
            ray=ray,
            gpus=gpus,
            strict=strict,
            as_json=as_json,
            with_report=with_report,
            use_cache=not no_cache,
        ),
    )


@app.command(name="evaluate")
def evaluate_command(
    photographs: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Folders of photographs, or image files.")
    ],
    model: ModelOption = PRETRAINED,
    backend: Backend = None,
    layer: Layer = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS", help="Class to explain, index or name.", show_default="the predicted class"
        ),
    ] = None,
    stats: Stats = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Methods, with commas between.", show_default="all"),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Metrics, with commas between: the functions of iba_core.evaluation.",
            show_default="those that need neither masks nor much time",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of methods and metrics.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = OUT,
    no_cache: NoCache = False,
    preprocess: Preprocess = None,
    size: Size = None,
) -> None:
    """Compare our maps with those of other methods: print a table, write it as CSV and JSON, and draw it."""
    from iba_core.cli.evaluate import evaluate_methods
    from iba_core.cli.network import parse_size

    evaluate_methods(
        photographs,
        model=model,
        backend=backend,
        layer=layer,
        target=target,
        stats=stats,
        out=out,
        seed=seed,
        methods=methods,
        metrics=metrics,
        use_cache=not no_cache,
        preprocess=preprocess,
        size=parse_size(size),
    )


@app.command()
def compare(
    first: Model,
    second: Annotated[str, typer.Argument(metavar="MODEL", help="The other one, of any framework.")],
    photographs: Annotated[
        list[Path], typer.Argument(metavar="PHOTO", help="Image files, or folders of them.")
    ],
    first_backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="torch or tensorflow.", show_default="the first that can load it"),
    ] = None,
    second_backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="torch or tensorflow.", show_default="the first that can load it"),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Layer of the first network to explain at.", show_default="automatic"
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="What pairs the layers: name, order or shape.",
            show_default="name, else shape",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="Class to explain, index or name.",
            show_default="the first network's prediction",
        ),
    ] = None,
    maps: Annotated[bool, typer.Option(help="Compare maps, bits and survival as well.")] = True,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Relative difference that rounding may make.", show_default="by the precision"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = OUT,
    preprocess: Preprocess = None,
    size: Size = None,
) -> None:
    """Compare two networks of one task: outputs, features of paired layers, maps, bits, seconds.

    It is told at which layer a port begins to differ.
    """
    from iba_core.cli.compare import compare_networks
    from iba_core.cli.network import parse_size

    compare_networks(
        (first, second),
        photographs,
        backends=(first_backend, second_backend),
        layer=layer,
        pairs=pairs,
        target=target,
        maps=maps,
        tolerance=tolerance,
        out=out,
        seed=seed,
        preprocess=preprocess,
        size=parse_size(size),
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that iba explain has written to.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write to.", show_default="RUN/report")
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Heading.", show_default="name of the folder")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Make a report of a run, to look at in a browser: a grid to sort and filter, a page for each input."""
    from iba_core.cli.report import report_run

    report_run(run, out=out, title=title, show=show)


@app.command()
def layers(
    model: Model = PRETRAINED,
    backend: Backend = None,
    preprocess: Preprocess = None,
    size: Size = None,
) -> None:
    """List the layers of a network with the shapes of their outputs."""
    from iba_core.cli.layers import list_layers
    from iba_core.cli.network import parse_size

    list_layers(model=model, backend=backend, preprocess=preprocess, size=parse_size(size))


@app.command()
def estimate(
    model: Model,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder of images. Subfolders are searched as well.")
    ],
    out: Annotated[Path, typer.Option(metavar="STATS", help="File to write, for iba explain --stats.")],
    backend: Backend = None,
    layer: Layers = None,
    n_samples: Annotated[int, typer.Option(help="Maximum number of images, chosen at random.")] = 5000,
    batch_size: Annotated[int, typer.Option(help="Images to run through the network at once.")] = 32,
    jobs: Jobs = None,
    ray: Ray = None,
    gpus: Gpus = 0.0,
    preprocess: Preprocess = None,
    size: Size = None,
) -> None:
    """Estimate the distribution of a layer's features, on a folder of your images."""
    from iba_core.cli.estimate import estimate_statistics
    from iba_core.cli.network import parse_size

    estimate_statistics(
        data,
        model=model,
        backend=backend,
        layer=named_layers(layer),
        out=out,
        n_samples=n_samples,
        batch_size=batch_size,
        jobs=jobs,
        ray=ray,
        gpus=gpus,
        preprocess=preprocess,
        size=parse_size(size),
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = Path("demo-out"),
) -> None:
    """Explain a cat, a coffee and a rocket in PyTorch and in TensorFlow, and compare."""
    from iba_core.cli.demo import run_demo

    run_demo(out)

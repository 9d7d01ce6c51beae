"""``iba layers``: list the layers of a network."""

from __future__ import annotations

from iba_core.cli.console import console, folded, notes, plain_table
from iba_core.cli.network import Network
from iba_core.default_layer import choose_layers
from iba_core.errors import LayerError

_WIDTH = 36
"""Maximum number of characters of a layer's name in one line."""


def list_layers(
    *, model: str, backend: str | None, preprocess: str | None, size: tuple[int, int] | None
) -> None:
    """Print the layers of a model and the shapes of their outputs."""
    network = Network.load(model, backend, preprocess, size)
    network.require_fit()
    inputs = network.probe()
    layers = network.adapter.layers(inputs)
    try:
        chosen = [choice.layer for choice in choose_layers(network.adapter, inputs)]
        note = f"{', '.join(chosen)}, marked by *, "
        note += "make one map by default" if len(chosen) > 1 else "is the default"
    except LayerError:
        chosen = []
        note = "there is no default; name one with --layer"

    table = plain_table()
    table.add_column("")
    table.add_column("Layer")
    table.add_column("Kind")
    table.add_column("Output", justify="right", no_wrap=True)
    for info in layers:
        marked = info.name in chosen
        shape = "several" if info.output_shape is None else " x ".join(map(str, info.output_shape))
        table.add_row(
            "*" if marked else "",
            folded(info.name, _WIDTH),
            folded(info.kind, 24),
            shape,
            style="bold" if marked else "",
        )
    terminal = console()
    terminal.print(table)
    terminal.print()
    terminal.print(notes([("Layer", note), ("Pictures", network.preprocessing_summary)], terminal.width))

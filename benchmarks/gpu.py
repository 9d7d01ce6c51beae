"""Time explanations on a GPU: eager and compiled, float32 and bfloat16, by the size of the batch.

    python -m benchmarks.gpu [--device DEVICE] [--largest N]

Times come from the GPU's own events. The peak is the speed of a large matrix product in the same precision,
measured here.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Results, show
from benchmarks.methods import SAMPLES, STEPS
from benchmarks.networks import TARGET, subject
from benchmarks.tables import Column
from iba_core import Explainer
from iba_core.targets import main_output
from iba_core.timing import BareTail

TITLES = ("EfficientNet-Lite0, blocks.5", "ResNet-50, layer2")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LARGEST = 64
ROUNDS = 5
MATRIX = 8192


def measure(results: Results, device: torch.device, largest: int, matrix: int = MATRIX) -> None:
    """Explain batches of growing sizes on `device`, in every precision, eager and compiled."""
    results.data["peaks"] = {}
    for precision, dtype in PRECISIONS.items():
        results.data["peaks"][precision] = matrix_product_rate(device, dtype, matrix)
    for title in TITLES:
        table = results.table(
            title,
            Column("Precision"),
            Column("Mode"),
            Column("Images at once", "d"),
            Column("Time", ".4f", "s"),
            Column("Images per second", ".2f"),
            Column("Ratio to bare tail", ".2f"),
            Column("Share of the peak", ".1%"),
            Column("Peak memory", ".0f", "MB"),
        )
        of = subject(title, "torch")
        for (precision, dtype), compiled in itertools.product(PRECISIONS.items(), (False, True)):
            model = of.model.to(device, dtype)
            explainer = Explainer(model, of.layer, estimator=of.explainer.estimator, compile=compiled)
            tail = BareTail(explainer.adapter, explainer.adapter.split(of.layer))
            photograph = torch.from_numpy(of.x).to(device, dtype)
            flops = tail_flops(explainer, of.layer, photograph)
            mode = "compiled" if compiled else "eager"
            for images in _batches(largest):
                show(f"  {title}, {precision}, {mode}, {images}")
                try:
                    seconds, bare, memory = _explanations(explainer, tail, photograph, images, device)
                except torch.OutOfMemoryError:
                    show("    out of memory")
                    break
                done = flops * images * SAMPLES * STEPS / seconds
                share = done / results.data["peaks"][precision]
                table.rows.append(
                    [precision, mode, images, seconds, images / seconds, seconds / bare, share, memory]
                )


def seconds_on(device: torch.device, work: Callable[[], object]) -> float:
    """Time `work` on a device in seconds, by the device's own events if it has them."""
    if device.type != "cuda":
        start = perf_counter()
        work()
        return perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def matrix_product_rate(device: torch.device, dtype: torch.dtype, size: int = MATRIX) -> float:
    """Measure the operations per second in the product of two square matrices, best of several runs."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / min(seconds_on(device, lambda: torch.mm(a, b)) for _ in range(ROUNDS))


def tail_flops(explainer: Explainer, layer: str, photograph: torch.Tensor) -> int:
    """Count the operations in the tail for one feature map, forward and backward."""
    with explainer.adapter.split(layer).head(photograph) as tail:
        z = tail.features.detach().clone().requires_grad_()
        with FlopCounterMode(display=False) as counter, torch.enable_grad():
            torch.autograd.grad(main_output(tail(z)).sum(), z)
    return int(counter.get_total_flops())


def _explanations(
    explainer: Explainer, tail: BareTail, photograph: torch.Tensor, images: int, device: torch.device
) -> tuple[float, float, float | None]:
    """Time an explanation of a batch and the bare tail, in seconds, and measure the memory in MB."""
    batch = photograph.repeat(images, 1, 1, 1)

    def explain() -> None:
        explainer.explain(batch, TARGET, steps=STEPS, samples=SAMPLES)

    explain()
    memory = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        explain()
        memory = torch.cuda.max_memory_allocated(device) / 1e6
    tail.seconds(batch, 1, SAMPLES)
    rounds = [(seconds_on(device, explain), tail.seconds(batch, STEPS, SAMPLES)) for _ in range(ROUNDS)]
    return median(ours for ours, _ in rounds), median(bare for _, bare in rounds), memory


def _batches(largest: int) -> list[int]:
    """List 1, 2, 4 and so on, up to `largest`."""
    return [2**power for power in range(largest.bit_length()) if 2**power <= largest]


def plot(content: dict[str, Any], path: Path) -> None:
    """Draw the images per second against the size of the batch."""
    import matplotlib.pyplot as plt

    tables = content["tables"]
    figure, axes = plt.subplots(1, len(tables), figsize=(5 * len(tables), 4), squeeze=False)
    for axis, table in zip(axes[0], tables, strict=True):
        for precision, mode in dict.fromkeys((row[0], row[1]) for row in table["rows"]):
            points = [(row[2], row[4]) for row in table["rows"] if row[:2] == [precision, mode]]
            axis.loglog(*zip(*points, strict=True), "o-", label=f"{precision}, {mode}")
        axis.set_title(table["title"], loc="left", fontsize=10)
        axis.set_xlabel("images at once")
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("images per second")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="PyTorch's name of the device to run on")
    parser.add_argument("--largest", type=int, default=LARGEST, help="largest number of images at once")
    parser.add_argument("--matrix", type=int, default=MATRIX, help="side of the matrices to measure the peak")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        show("gpu: no GPU was found, so nothing was measured")
        return
    # Convolutions in float32 use the matrix units of the GPU by default. Let the product use them as well.
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    results = Results("gpu", device=name, steps=STEPS, samples=SAMPLES)
    measure(results, device, options.largest, options.matrix)
    results.write()


if __name__ == "__main__":
    main()

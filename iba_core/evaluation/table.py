"""The table that an evaluation gives."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_choice
from iba_core.evaluation.intervals import Estimate, bootstrap, paired
from iba_core.evaluation.metrics import Metric
from iba_core.files import write_atomically
from iba_core.pictures.plotting import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = npt.NDArray[np.float64]

_ARROWS = {True: "↑", False: "↓", None: ""}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Methods and metrics, with a number for each picture. `evaluate` returns it.

    Attributes:
        metrics: the metrics, the columns.
        values: for each method, for each metric: (n, ...), what each picture gives.
        seconds: for each method, (n,): seconds that the map of a picture took.

    Example:
        >>> table = evaluate({"gradients": Gradients(model)}, [x], ["insertion"], model=model, progbar=False)
        >>> table.methods, table.estimate("gradients", "insertion").n
        (['gradients'], 2)
    """

    metrics: Sequence[Metric]
    values: Mapping[str, Mapping[str, Numbers]]
    seconds: Mapping[str, Numbers]
    _estimates: dict[tuple[str, str], Estimate] = field(default_factory=dict, repr=False)

    @property
    def methods(self) -> list[str]:
        """Names of the methods, the rows."""
        return list(self.values)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(next(iter(self.seconds.values())))

    def metric(self, name: str) -> Metric:
        """The metric of a name.

        Raises:
            InputError: there is none.
        """
        known = {metric.name: metric for metric in self.metrics}
        return known[require_choice("metric", name, known, "metric of this table")]

    def estimate(self, method: str, metric: str, **options: Any) -> Estimate:
        """A cell of the table, with its bootstrap interval.

        Args:
            method: name of the row.
            metric: name of the column.
            **options: see `bootstrap`.

        Raises:
            InputError: there is no such row or column.
        """
        require_choice("method", method, self.values, "method of this table")
        reduce = self.metric(metric).reduce
        if options:
            return bootstrap(self.values[method][metric], reduce, **options)
        if (method, metric) not in self._estimates:
            self._estimates[method, metric] = bootstrap(self.values[method][metric], reduce)
        return self._estimates[method, metric]

    def compare(self, method: str, reference: str, metric: str, **options: Any) -> Estimate:
        """The difference of two methods on the same pictures, see `paired`.

        Args:
            method: name of a row.
            reference: name of the row to compare it with.
            metric: name of the column.
            **options: see `bootstrap`.

        Raises:
            InputError: there is no such row or column.
        """
        for name, value in (("method", method), ("reference", reference)):
            require_choice(name, value, self.values, "method of this table")
        column = self.metric(metric)
        first, second = self.values[method][metric], self.values[reference][metric]
        return paired(first, second, column.reduce, **options)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each method and metric, with value, interval, number of pictures and direction."""
        found = []
        for method in self.methods:
            for metric in self.metrics:
                estimate = self.estimate(method, metric.name)
                numbers = {
                    name: None if np.isnan(value) else value
                    for name, value in (
                        ("value", estimate.value),
                        ("low", estimate.low),
                        ("high", estimate.high),
                    )
                }
                found.append(
                    {"method": method, "metric": metric.name}
                    | numbers
                    | {"n": estimate.n, "higher_is_better": metric.higher_is_better}
                )
        return found

    def to_dict(self, pictures: bool = False) -> dict[str, Any]:
        """The table as plain numbers and texts, which JSON can store.

        Args:
            pictures: also what each picture gives.
        """
        seconds = {method: float(np.mean(each)) for method, each in self.seconds.items()}
        found: dict[str, Any] = {"rows": self.rows(), "seconds": seconds, "pictures": len(self)}
        if pictures:
            found["values"] = {
                method: {name: _plain(array) for name, array in columns.items()}
                for method, columns in self.values.items()
            }
        return found

    def to_csv(self, path: str | PathLike[str] | None = None) -> str:
        """The rows as comma-separated text, one for each method and metric.

        Args:
            path: file to write; None to write none.

        Returns:
            The text.
        """
        text = io.StringIO()
        rows = self.rows()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return _written(text.getvalue(), path)

    def to_json(self, path: str | PathLike[str] | None = None, pictures: bool = True) -> str:
        """What `to_dict` gives, as JSON.

        Args:
            path: file to write; None to write none.
            pictures: also what each picture gives.

        Returns:
            The text.
        """
        return _written(json.dumps(self.to_dict(pictures), indent=1) + "\n", path)

    def __str__(self) -> str:
        """A line for each method, a column for each metric; arrows say which direction is better."""
        heads = [
            "",
            *(f"{metric.name} {_ARROWS[metric.higher_is_better]}".strip() for metric in self.metrics),
        ]
        lines = [heads]
        for method in self.methods:
            cells = [str(self.estimate(method, metric.name)) for metric in self.metrics]
            lines.append([method, *cells])
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, f"{len(self)} pictures; 95 % bootstrap intervals"])

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw a panel for each metric: a dot and an interval for each method.

        Args:
            path: file to write; None to write none.

        Returns:
            The figure.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        require_matplotlib()
        from matplotlib.figure import Figure

        from iba_core.pictures.plotting import save_figure

        columns = min(4, len(self.metrics))
        rows = -(-len(self.metrics) // columns)
        height = 0.28 * len(self.methods) + 0.9
        figure = Figure(figsize=(2.6 * columns + 1.6, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axis, metric in zip(axes.flat, self.metrics, strict=False):
            self._draw(axis, metric)
        for axis in list(axes.flat)[len(self.metrics) :]:
            axis.set_visible(False)
        axes[0, 0].invert_yaxis()
        if path is not None:
            save_figure(figure, path)
        return figure

    def _draw(self, axis: Any, metric: Metric) -> None:
        for place, method in enumerate(self.methods):
            estimate = self.estimate(method, metric.name)
            axis.plot([estimate.low, estimate.high], [place, place], color="#8fb8d8", linewidth=3)
            axis.plot(estimate.value, place, "o", color="#1b6ca8", markersize=4)
        axis.set_yticks(range(len(self.methods)), self.methods, fontsize=8)
        axis.set_title(f"{metric.name} {_ARROWS[metric.higher_is_better]}", fontsize=9, loc="left")
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)


def _plain(array: Numbers) -> Any:
    flat = [None if np.isnan(value) else value for value in array.ravel().tolist()]
    return flat if array.ndim == 1 else np.array(flat, dtype=object).reshape(array.shape).tolist()


def _written(text: str, path: str | PathLike[str] | None) -> str:
    if path is not None:
        with write_atomically(path) as file:
            file.write(text.encode())
    return text

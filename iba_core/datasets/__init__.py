"""Many inputs: explained one by one into a folder, where a run that was killed goes on."""

from iba_core.datasets.loop import explain_dataset
from iba_core.datasets.run import Record, Run

__all__ = ["Record", "Run", "explain_dataset"]

"""A run of explanations as pages that a browser opens from disk."""

from iba_core.report.writing import write_report

__all__ = ["write_report"]

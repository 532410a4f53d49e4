"""One self-contained page about a run."""

from cit_curate.report.page import build_report

__all__ = ["build_report"]

"""Whole protocols on one model: what `personae eval --suite` and the benchmarks run."""

from personae.evaluation.suites.context import SuiteContext
from personae.evaluation.suites.report import SuiteResult, Table, suite_to_dict, suite_to_markdown, suite_to_rich

__all__ = ["SuiteContext", "SuiteResult", "Table", "suite_to_dict", "suite_to_markdown", "suite_to_rich"]

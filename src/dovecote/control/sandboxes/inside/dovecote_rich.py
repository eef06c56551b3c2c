"""Runs once in a Python kernel: tables and charts are shown as data too, and variables can be set for one execution."""

from __future__ import annotations

import importlib
import os
from typing import Any

from IPython.core.formatters import BaseFormatter
from IPython.core.getipython import get_ipython

CHARTS = importlib.import_module("dovecote_charts")
TABLE = "application/vnd.dovecote.table+json"
CHART = "application/vnd.dovecote.chart+json"
MOST_ROWS = 1000
MOST_COLUMNS = 200
MOST_TEXT = 10_000  # characters of a cell


class Environ:
    """Variables of one execution. `leave` puts back what was there."""

    def __init__(self) -> None:
        self._before: dict[str, str | None] = {}

    def enter(self, env: dict[str, str]) -> None:
        self._before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)

    def leave(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}


def table(frame: Any) -> dict[str, Any]:
    """The first rows and columns of a pandas DataFrame, and how many there are in all."""
    shown = frame.iloc[:MOST_ROWS, :MOST_COLUMNS]
    columns = [{"name": str(name), "type": str(kind)} for name, kind in zip(shown.columns, shown.dtypes, strict=True)]
    rows = [[_cell(value) for value in row] for row in shown.astype(object).itertuples(index=False, name=None)]
    return {
        "columns": columns,
        "index": [_cell(value) for value in shown.index],
        "rows": rows,
        "total_rows": int(frame.shape[0]),
        "total_columns": int(frame.shape[1]),
    }


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    item = getattr(value, "item", None)
    if callable(item) and not isinstance(value, str):
        try:
            value = item()
        except (TypeError, ValueError):
            return str(value)[:MOST_TEXT]
    if isinstance(value, (bool, int)):
        return value if abs(value) < 1 << 53 else str(value)
    if isinstance(value, float):
        return value if value - value == 0 else None  # neither NaN nor infinite
    text = str(value)
    return None if text in ("NaT", "<NA>") else text[:MOST_TEXT]


def chart(figure: Any) -> dict[str, Any] | None:
    """What a figure of matplotlib shows, as data; None where its kind is not known."""
    try:
        found = CHARTS.of_figure(figure)
    except Exception:  # of parts that it does not know: the picture is there all the same
        return None
    return found if isinstance(found, dict) else None


class _Json(BaseFormatter):
    _return_type = dict

    def pop(self, typ: Any, default: Any = None) -> Any:
        """Keeps it: where matplotlib is set up, whatever anybody has for figures is taken away."""
        return default


def _install() -> None:
    shell = get_ipython()
    shell.dovecote_environ = Environ()
    formatters = shell.display_formatter.formatters
    active = shell.display_formatter.active_types
    for mime, module, name, render in (
        (TABLE, "pandas", "DataFrame", table),
        (TABLE, "pandas.core.frame", "DataFrame", table),
        (CHART, "matplotlib.figure", "Figure", chart),
    ):
        if mime not in formatters:
            made = _Json(parent=shell.display_formatter)
            made.format_type = mime
            made.print_method = "_repr_dovecote_"
            formatters[mime] = made
        formatters[mime].for_type_by_name(module, name, render)
    shell.display_formatter.active_types = [*active, TABLE, CHART]


_install()

"""Reads the data back out of a figure of matplotlib. Loaded in a Python kernel by rich.py."""

from __future__ import annotations

from typing import Any

MOST_POINTS = 5000  # of one line
NEAR = 1e-6


def of_figure(figure: Any) -> dict[str, Any] | None:
    """The chart of its one set of axes, a `superchart` of several, None of none."""
    found = [of_axes(axes) for axes in figure.axes if axes.has_data() or axes.patches]
    charts = [each for each in found if each is not None]
    if len(charts) < 2:
        return charts[0] if charts else None
    title = figure._suptitle.get_text() if figure._suptitle is not None else ""
    return {"type": "superchart", "title": title, "elements": charts}


def of_axes(axes: Any) -> dict[str, Any] | None:
    """What one set of axes shows. Bars, pies and boxes are drawn of simpler parts, hence looked for first."""
    title = axes.get_title() or axes.get_title(loc="left") or axes.get_title(loc="right")
    wedges = [patch for patch in axes.patches if type(patch).__name__ == "Wedge"]
    if wedges:
        return {"type": "pie", "title": title, "elements": [_wedge(each) for each in wedges]}
    for kind, elements in (("bar", _bars(axes)), ("box_and_whisker", _boxes(axes))):
        if elements:
            return {"type": kind, "title": title, **_labels(axes), "elements": elements}
    drawn = [line for line in axes.get_lines() if len(line.get_xdata()) and not _is_rule(line)]
    lines = [_points(line, line.get_xydata()) for line in drawn if line.get_linestyle() not in ("None", "", " ")]
    dots = [_points(line, line.get_xydata()) for line in drawn if line.get_linestyle() in ("None", "", " ")]
    dots += [_points(each, each.get_offsets()) for each in axes.collections if type(each).__name__ == "PathCollection"]
    if not lines and not dots:
        return None
    kind = "line" if lines else "scatter"
    return {"type": kind, "title": title, **_labels(axes), **_scales(axes), "elements": lines or dots}


def _labels(axes: Any) -> dict[str, Any]:
    """`Height (cm)` names a unit."""
    found: dict[str, Any] = {}
    for name, text in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())):
        label, bracket, unit = text.partition("(")
        has_unit = bool(bracket) and unit.rstrip().endswith(")")
        found[f"{name}_label"] = (label.strip() if has_unit else text) or None
        found[f"{name}_unit"] = unit.rstrip().removesuffix(")").strip() if has_unit else None
    return found


def _scales(axes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        converter = type(getattr(axis, "get_converter", lambda: None)() or getattr(axis, "converter", None)).__name__
        scale = axis.get_scale()
        if "Date" in converter:
            scale = "datetime"
        elif "Category" in converter:
            scale = "categorical"
        found[f"{name}_scale"] = scale
        found[f"{name}_ticks"] = [_number(value) for value in axis.get_ticklocs()]
        found[f"{name}_tick_labels"] = [label.get_text() for label in axis.get_ticklabels()]
    return found


def _points(artist: Any, points: Any) -> dict[str, Any]:
    """Dates and categories are told by their text, as the axis shows them."""
    axes = artist.axes
    xs, ys = ([point[at] for point in list(points)[:MOST_POINTS]] for at in (0, 1))
    return {
        "label": _label(artist),
        "points": [list(pair) for pair in zip(_told(axes.xaxis, xs), _told(axes.yaxis, ys), strict=True)],
    }


def _told(axis: Any, values: list[Any]) -> list[Any]:
    converter = type(getattr(axis, "get_converter", lambda: None)() or getattr(axis, "converter", None)).__name__
    if "Date" in converter:
        from matplotlib.dates import num2date

        return [num2date(value).isoformat() for value in values]
    if "Category" in converter and axis.units is not None:
        names = {place: str(name) for name, place in axis.units._mapping.items()}
        return [names.get(int(value), _number(value)) for value in values]
    return [_number(value) for value in values]


def _bars(axes: Any) -> list[dict[str, Any]]:
    found = []
    for bars in axes.containers:
        if type(bars).__name__ != "BarContainer":
            continue
        is_flat = getattr(bars, "orientation", "vertical") == "horizontal"
        axis = axes.yaxis if is_flat else axes.xaxis
        for bar in bars.patches:
            start, size = (bar.get_y(), bar.get_height()) if is_flat else (bar.get_x(), bar.get_width())
            value = bar.get_width() if is_flat else bar.get_height()
            label = _bar_name(axis, start + size / 2)
            found.append({"label": label, "group": _label(bars), "value": _number(value)})
    return found


def _bar_name(axis: Any, middle: float) -> str:
    """The name that is nearest; on an axis of numbers the number itself, whose ticks lie where they like."""
    names = _tick_names(axis)
    place = min(names, key=lambda place: abs(place - middle), default=None)
    is_number = type(axis.get_major_formatter()).__name__ == "ScalarFormatter"
    if place is None or (is_number and abs(place - middle) > NEAR):
        return str(_number(middle))
    return names[place]


def _wedge(wedge: Any) -> dict[str, Any]:
    angle = abs(wedge.theta2 - wedge.theta1)
    return {"label": wedge.get_label(), "angle": _number(angle), "radius": _number(wedge.r)}


def _boxes(axes: Any) -> list[dict[str, Any]]:
    """A box is a closed rectangle; whiskers begin at its ends, a bar across it is the median, dots are outliers."""
    lines = [[(float(x), float(y)) for x, y in line.get_xydata()] for line in axes.get_lines()]
    frames = [points for points in lines if len(points) == 5 and points[0] == points[-1]]
    frames += [_outline(patch) for patch in axes.patches if type(patch).__name__ == "PathPatch"]
    names = _tick_names(axes.xaxis)
    found = []
    for frame in frames:
        xs, ys = sorted({x for x, _ in frame}), sorted({y for _, y in frame})
        if not xs or not ys or len(xs) > 2 or len(ys) > 2:
            continue
        middle, low, high = (xs[0] + xs[-1]) / 2, ys[0], ys[-1]
        upright = [sorted(y for _, y in p) for p in lines if len(p) == 2 and all(abs(x - middle) < NEAR for x, _ in p)]
        across = [p[0][1] for p in lines if len(p) == 2 and p[0][1] == p[1][1] and _spans(p, xs[0], xs[-1])]
        medians = [y for y in across if low - NEAR <= y <= high + NEAR]
        if not medians or not upright:
            continue
        aside = [p for p in lines if len(p) != 2 and p and all(abs(x - middle) < NEAR for x, _ in p)]
        found.append(
            {
                "label": next((name for place, name in names.items() if abs(place - middle) < NEAR), str(middle)),
                "min": min(y for pair in upright for y in pair),
                "first_quartile": low,
                "median": medians[0],
                "third_quartile": high,
                "max": max(y for pair in upright for y in pair),
                "outliers": [y for points in aside for _, y in points],
            }
        )
    return found


def _outline(patch: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in patch.get_path().vertices[:5]]


def _spans(points: list[tuple[float, float]], left: float, right: float) -> bool:
    xs = sorted(x for x, _ in points)
    return abs(xs[0] - left) < NEAR and abs(xs[-1] - right) < NEAR


def _tick_names(axis: Any) -> dict[float, str]:
    places, labels = axis.get_ticklocs(), axis.get_ticklabels()
    return {
        float(place): label.get_text() for place, label in zip(places, labels, strict=False) if label.get_text() != ""
    }


def _is_rule(line: Any) -> bool:
    """`axhline` and the like: drawn across the axes, no data."""
    return line.get_transform() != line.axes.transData and len(line.get_xdata()) == 2


def _label(artist: Any) -> str:
    text = str(artist.get_label() or "")
    return "" if text.startswith("_") else text


def _number(value: Any) -> float | int | None:
    number = float(value)
    if number - number != 0:
        return None
    return int(number) if number == int(number) and abs(number) < 1 << 53 else number

"""Charts of a dataset card: matplotlib's SVG, inlined, in the colours of the page, so that dark and light both work."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, ACCENT, OTHER = "#010203", "#010204", "#010205"
"""Stand-ins for the page's own colours: replaced in the SVG by its CSS variables."""
_VARIABLES = {INK: "var(--ink)", ACCENT: "var(--accent)", OTHER: "var(--other)"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "uvd",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WIDTH, _BAR_HEIGHT, _MARGIN = 7.2, 0.34, 0.9
_MAX_BARS = 14
_TENTH = 0.1


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing and what it says.

    Attributes:
        name: short and unique on the page.
        title: above it.
        svg: the whole `<svg>` element.
        said: its content in a sentence, for those who do not see it.
    """

    name: str
    title: str
    svg: str
    said: str


def bars(
    name: str, title: str, values: Mapping[str, float], *, beside: Mapping[str, float] | None = None, unit: str = ""
) -> Chart | None:
    """Horizontal bars, largest first as they come; `beside` gives each a second bar, such as UVDv1's. None if empty."""
    shown = dict(list(values.items())[:_MAX_BARS])
    if not shown:
        return None
    labels, places = list(shown), np.arange(len(shown))
    height = _MARGIN + _BAR_HEIGHT * len(shown) * (1.6 if beside else 1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, height))
        axes = figure.subplots()
        thick = 0.38 if beside else 0.72
        axes.barh(
            places - (thick / 2 if beside else 0), list(shown.values()), thick, color=ACCENT, label="this dataset"
        )
        if beside:
            axes.barh(
                places + thick / 2, [beside.get(label, 0.0) for label in labels], thick, color=OTHER, label="UVDv1"
            )
            axes.legend(frameon=False, loc="lower right")
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        svg = _svg(figure, axes, name)
    said = "; ".join(
        f"{label} {_number(value)}{f' (UVDv1 {_number(beside.get(label, 0.0))})' if beside else ''}"
        for label, value in shown.items()
    )
    left = len(values) - len(shown)
    return Chart(name, title, svg, f"{unit}: {said}{f'; and {left} more' if left else ''}.")


def codebook(name: str, title: str, histogram: NDArray[np.int64]) -> Chart | None:
    """How often each code occurs, most frequent first, on logarithmic axes. None without tokens."""
    counts = np.sort(histogram[histogram > 0])[::-1]
    if not len(counts):
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, 3.0))
        axes = figure.subplots()
        axes.plot(np.arange(1, len(counts) + 1), counts / counts.sum(), color=ACCENT, linewidth=2)
        axes.axhline(1 / len(histogram), color=OTHER, linewidth=1, linestyle="--", label="all codes alike")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("codes, most frequent first")
        axes.set_ylabel("share of tokens")
        axes.legend(frameon=False, loc="lower left")
        svg = _svg(figure, axes, name)
    tenth = counts[: max(1, round(_TENTH * len(histogram)))].sum() / counts.sum()
    occur = f"{len(counts):,} of {len(histogram):,} codes occur"
    said = f"{occur}; the most frequent tenth makes {100 * tenth:.0f} % of the tokens."
    return Chart(name, title, svg, said)


def _svg(figure: Figure, axes: Axes, name: str) -> str:
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    # Several drawings on one page: their internal names must differ.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace("<svg", f'<svg role="img" aria-labelledby="{name}-said" class="chart"', 1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def present(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]

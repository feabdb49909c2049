"""The campaign's table, for `benchmarks/results/chaos.json` and `docs/reliability.md`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uvd.benchmarks.chaos.campaign import Outcome
from uvd.benchmarks.chaos.faults import FAULTS
from uvd.benchmarks.record import ROOT, commit, hardware

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- campaign: written by make chaos -->", "<!-- end of campaign -->"


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row a fault, in the order of `FAULTS`; faults without a run have zeros."""
    made = []
    for fault in FAULTS.values():
        runs = [outcome for outcome in outcomes if outcome.fault == fault.name]
        made.append(
            {
                "fault": fault.name,
                "means": fault.means,
                "runs": len(runs),
                "struck": sum(outcome.struck > 0 for outcome in runs),
                "identical": sum(outcome.identical for outcome in runs),
                "leftovers": sum(outcome.leftovers for outcome in runs),
                "unaccounted": sum(outcome.unaccounted for outcome in runs),
                "other_problems": sum(not outcome.good for outcome in runs),
                "median_seconds": round(statistics.median([outcome.seconds for outcome in runs]), 1) if runs else None,
                "possible_here": fault.possible(),
            }
        )
    return made


def content(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the JSON file says besides hardware and commit."""
    return {
        "seeds": [outcome.seed for outcome in outcomes],
        "good": sum(outcome.good for outcome in outcomes),
        "runs": len(outcomes),
        "faults": rows(outcomes),
        "outcomes": [outcome.as_json() for outcome in outcomes],
    }


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: fault by runs, identical datasets, leftovers, unaccounted inputs."""
    lines = [
        "| fault | what is done | runs | struck | identical | leftovers | unaccounted | other problems | s a run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(outcomes):
        seconds = row["median_seconds"] if row["runs"] else "–"
        means = row["means"] + ("" if row["possible_here"] else " (not possible on this machine)")
        lines.append(
            f"| {row['fault']} | {means} | {row['runs']} | {row['struck']} | {row['identical']} | {row['leftovers']} "
            f"| {row['unaccounted']} | {row['other_problems']} | {seconds} |"
        )
    good = sum(outcome.good for outcome in outcomes)
    machine = hardware()
    return "\n".join(
        [
            f"**{good} of {len(outcomes)} runs good.** {machine['cores']} cores of {machine['processor']}, "
            f"{machine['memory_gib']} GiB; commit {commit()}.",
            "",
            *lines,
        ]
    )


def write_page(outcomes: Sequence[Outcome], page: Path = PAGE) -> None:
    """Puts the table between the page's markers.

    Raises:
        ValueError: if the page has no markers.
    """
    text = page.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    page.write_text(f"{text[:begin]}\n{table(outcomes)}\n{text[end:]}")

"""What a person is told when a stage has ended: what is there, what was refused, what failed, how to go on."""

from __future__ import annotations

from rich.console import Console

from uvd.pipeline.stage import StageResult

_COUNTS = ("inputs", "used", "rejected", "sequences", "images", "tokens")
_REASONS_SHOWN = 8


def report(result: StageResult, what: str, where: str, console: Console) -> bool:
    """Prints how a stage ended; returns whether every planned shard is there."""

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    totals = result.totals
    counts = ", ".join(f"{totals[name]:,} {name}" for name in _COUNTS if totals[name])
    if result.complete and not result.run.done:
        say(f"{what}: all {result.planned} shards are there already, nothing to do ({counts})")
        return True
    if result.complete:
        say(f"{what}: {result.planned} shards committed ({counts})", "green")
    for shard, error in sorted(result.run.failed.items()):
        say(f"{what}: shard {shard} failed: {error.strip().rpartition(chr(10))[2]}", "red")
    if result.run.failed:
        failed = len(result.run.failed)
        say(
            f"{what}: {failed} of {result.planned} shards failed and were skipped; the same command tries them again",
            "red",
        )
    if result.run.interrupted:
        there = result.existing + result.run.done
        say(f"{what}: stopped with {there} of {result.planned} shards committed in {where}", "yellow")
        say("The same command again goes on from there.", "yellow")
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.reasons.most_common(_REASONS_SHOWN))
    if reasons:
        say(f"  rejected now: {reasons}")
    return result.complete

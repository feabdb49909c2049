"""`uvd verify`: is a dataset sound, and make again what is not."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from uvd.manifests.dataset import Dataset
from uvd.pipeline.cli_data import SHARDS_FAILED, AddressOption, CpusOption, DatasetOption, SetOption, WaitOption
from uvd.pipeline.config import ConfigError
from uvd.pipeline.ray_runtime import LOCAL

if TYPE_CHECKING:
    from uvd.manifests.lease import Lease
    from uvd.manifests.verify import Scope
    from uvd.manifests.verify_findings import Verification
    from uvd.pipeline.repair_plan import Repair

FOUND = 1
SHOWN = 200


def verify(
    dataset: DatasetOption,
    deep: Annotated[bool, typer.Option("--deep", help="Read and decode everything, not only manifests.")] = False,
    source: Annotated[list[str] | None, typer.Option(help="Only this source and its tokens, repeatable.")] = None,
    shards: Annotated[str | None, typer.Option(help="Only these shards: a number, or first-last.")] = None,
    format: Annotated[str, typer.Option("--format", help="text, or json on standard output.")] = "text",
    repair: Annotated[bool, typer.Option("--repair", help="Make damaged shards again, remove leftovers.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --repair: only say what it would do.")] = False,
    settings: SetOption = None,
    tokenizer: Annotated[str | None, typer.Option(help="With --repair: folder of the tokenizer, if it moved.")] = None,
    wait: WaitOption = False,
    address: AddressOption = LOCAL,
    num_cpus: CpusOption = None,
) -> None:
    """Check that a dataset holds what its manifests say, and nothing else.

    Examples:

        uvd verify --dataset ~/uvd-data --deep

        uvd verify --dataset ~/uvd-data --deep --repair --set images.input=/new/place/of/photos

    Exit code 0: sound. 1: something is wrong. --repair makes exactly the damaged and missing shards again, from the
    inputs where they were when the dataset was made; 0: all is as it was, 3: something could not be repaired.
    """
    from uvd.pipeline.verifying import verify_dataset

    if format not in ("text", "json"):
        raise ConfigError(f"--format {format}: expected text or json")
    if not repair and (dry_run or settings or tokenizer is not None):
        raise ConfigError("--dry-run, --set and --tokenizer are for --repair")
    opened, console = Dataset.existing(dataset), Console(stderr=True)
    scope = _scope(opened, source or [], shards)

    def check() -> Verification:
        return verify_dataset(opened, deep=deep, scope=scope, address=address, num_cpus=num_cpus, console=console)

    if not repair or dry_run:
        found = check()
        repairs = _repair(opened, found, settings, tokenizer, address, num_cpus, console, True) if dry_run else None
    else:
        from uvd.pipeline.writing import writing

        with writing(opened, _folders(opened, scope), console, wait=wait) as lease:
            found = check()
            repairs = None
            if not found.interrupted:
                repairs = _repair(opened, found, settings, tokenizer, address, num_cpus, console, False, lease)
    if format == "json":
        print(json.dumps(_as_json(found, repairs), indent=1))
    else:
        _print(found, repairs, deep, dry_run, console)
    raise typer.Exit(_exit_code(found, repairs, dry_run))


def _scope(dataset: Dataset, sources: list[str], shards: str | None) -> Scope:
    from uvd.manifests.verify import Scope

    known = {*dataset.sources(), *(source for _, source in dataset.token_folders())}
    unknown = sorted(set(sources) - known)
    if unknown:
        raise ConfigError(f"--source {unknown[0]}: there are {', '.join(sorted(known))}")
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", shards or "0")
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ConfigError(f"--shards {shards}: expected a number, or first-last such as 0-99")
    return Scope(tuple(sources), int(match[1]), int(match[2] or match[1]) if shards is not None else None)


def _folders(dataset: Dataset, scope: Scope) -> list[str]:
    """What a repair holds: rounds of retries by the folder of their source."""
    entries = dataset.info()["sequences"]
    chosen = [name for name in entries if not scope.sources or name in scope.sources]
    tokens = [pair for pair in dataset.token_folders() if not scope.sources or pair[1] in scope.sources]
    return [
        *(f"sequences/{entries[name].get('retry_of', name)}" for name in chosen),
        *(f"tokens/{tokenizer}/{source}" for tokenizer, source in tokens),
    ]


def _repair(
    dataset: Dataset,
    found: Verification,
    settings: list[str] | None,
    tokenizer: str | None,
    address: str,
    num_cpus: int | None,
    console: Console,
    dry_run: bool,
    lease: Lease | None = None,
) -> Repair:
    from uvd.pipeline.repair_plan import Means
    from uvd.pipeline.repairing import repair

    for setting in settings or []:
        name, dot, rest = setting.partition(".")
        if not dot or "=" not in rest or name not in dataset.sources():
            raise ConfigError(f"--set {setting}: expected SOURCE.key=value, such as images.input=/photos")
    means = Means(console, lease, address, num_cpus, settings or [], tokenizer)
    return repair(dataset, found, means, dry_run=dry_run)


def _exit_code(found: Verification, repairs: Repair | None, dry_run: bool) -> int:
    if found.interrupted:
        return SHARDS_FAILED
    if repairs is not None and not repairs.complete:
        return SHARDS_FAILED
    return FOUND if found.findings and (repairs is None or dry_run) else 0


def _as_json(found: Verification, repairs: Repair | None) -> dict[str, object]:
    result: dict[str, object] = {
        "shards": found.shards,
        "sequences": found.sequences,
        "findings": [finding.as_json() for finding in found.findings],
        "writing": found.writing,
        "interrupted": found.interrupted,
        "without_pictures": found.without_pictures,
    }
    if repairs is not None:
        result["repair"] = {
            "plan": list(repairs.lines()),
            "impossible": repairs.impossible,
            "changed": repairs.changed,
            "unsound": repairs.unsound,
            "complete": repairs.complete,
        }
    return result


def _print(found: Verification, repairs: Repair | None, deep: bool, dry_run: bool, console: Console) -> None:
    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    for finding in found.findings[:SHOWN]:
        say(str(finding), "red")
    if len(found.findings) > SHOWN:
        say(f"and {len(found.findings) - SHOWN} more; --format json has them all", "red")
    for folder, holder in found.writing.items():
        say(f"{folder}: a run is writing, what it has not committed is not judged: {holder}", "yellow")
    if found.without_pictures:
        say(
            f"{found.without_pictures} image shards are without pictures (`uvd build --drop-images`): manifests checked"
        )
    kind = "deep" if deep else "shallow (use --deep to read every byte)"
    count = len(found.findings)
    stopped = ", stopped before the end" if found.interrupted else ""
    summary = f"{found.shards} shards, {found.sequences} rows checked, {count} problems{stopped}; {kind}"
    say(summary, "red" if count else "green")
    if repairs is None:
        return
    for line in repairs.lines():
        say(f"{'would ' if dry_run else ''}repair: {line}", "red" if "cannot be" in line else "")
    for place in repairs.changed:
        say(f"{place}: made again, and its bytes are not what they were: its inputs, or the machine, changed", "red")
    for problem in repairs.unsound:
        say(f"after repair: {problem}", "red")
    if not dry_run and count:
        say("all repaired" if repairs.complete else "not all could be repaired", "green" if repairs.complete else "red")


def register(app: typer.Typer) -> None:
    app.command()(verify)

"""The failure campaign: seeded faults against `uvd` on a Ray cluster of several nodes on this machine.

    python -m uvd.benchmarks.chaos --seeds 100

Exit code 1 if any run shows a problem; then its files are kept and named. A run takes some 20 s on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from uvd.benchmarks.chaos.campaign import WORKLOADS, Outcome, run_seeds
from uvd.benchmarks.chaos.faults import FAULTS
from uvd.benchmarks.chaos.report import content, table, write_page
from uvd.benchmarks.record import write_result


def tell(outcome: Outcome) -> None:
    state = "good" if outcome.good else "PROBLEM"
    codes = ",".join(str(code) for code in outcome.codes)
    print(
        f"seed {outcome.seed}: {outcome.fault} on {outcome.workload}: {state}; struck {outcome.struck}; "
        f"exit codes {codes}, then {outcome.tries} run(s); {outcome.seconds} s",
        flush=True,
    )
    for problem in outcome.problems:
        print(problem, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="number of runs")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--fault", choices=FAULTS, help="this fault only")
    parser.add_argument("--workload", choices=WORKLOADS, help="this workload only")
    parser.add_argument("--out", type=Path, help="JSON file; benchmarks/results/chaos.json by default")
    parser.add_argument("--page", action="store_true", help="write the table into docs/reliability.md too")
    given = parser.parse_args()
    chosen = FAULTS[given.fault] if given.fault else None
    outcomes = run_seeds(range(given.first, given.first + given.seeds), chosen, given.workload, tell)
    print(table(outcomes))
    print(f"wrote {write_result('chaos', content(outcomes), given.out)}")
    if given.page:
        write_page(outcomes)
    if not all(outcome.good for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

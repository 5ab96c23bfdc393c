"""How the evidence of a run rises with the time spent on it, by either proposal.

Run as `python scripts/evidence_over_time.py RUN [N]`; N images, 100 unless told. Printed is a table; the others are
compared with its last row.
"""

import sys
import time
from pathlib import Path
from typing import Literal

from vaecli import evaluate, load_run

COUNTS: dict[Literal["encoder", "fitted"], tuple[int, ...]] = {"encoder": (500, 5_000), "fitted": (50, 500, 2_000)}


def main() -> None:
    """Evaluate, and print."""
    run = load_run(Path(sys.argv[1]))
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    evaluate(run, k=2, limit=2, binarised=False)  # whatever is imported or allocated is done now
    rows = []
    for proposal, counts in COUNTS.items():
        for k in counts:
            began = time.perf_counter()
            found = evaluate(run, proposal=proposal, k=k, limit=n, binarised=False)
            rows.append((proposal, k, 1e3 * (time.perf_counter() - began) / n, found))
    best = rows[-1][-1].log_evidence
    print("| proposal | k | ms an image | log evidence | below the last | median ESS |\n|---|---|---|---|---|---|")
    for proposal, k, milliseconds, found in rows:
        ess, evidence = found.log_evidence_effective_sample_size, found.log_evidence
        print(f"| {proposal} | {k:,} | {milliseconds:.0f} | {evidence:.2f} | {best - evidence:.2f} | {ess:.1f} |")


if __name__ == "__main__":
    main()

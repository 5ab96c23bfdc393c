"""How the evidence of a run comes nearer to that of annealing with the time spent on it, by either proposal.

Run as `python scripts/evidence_over_time.py RUN [N]`; N images, 100 unless told. A run that was annealed on the same
images (`vae evaluate --ckpt RUN --method ais --limit N`) is compared with that. Printed is a table.
"""

import json
import sys
import time
from pathlib import Path
from typing import Literal

from vaecli import evaluate, load_run

COUNTS: dict[Literal["encoder", "fitted"], tuple[int, ...]] = {
    "encoder": (500, 5_000, 50_000),
    "fitted": (50, 500, 2_000),
}


def main() -> None:
    """Evaluate, and print."""
    run = load_run(Path(sys.argv[1]))
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    annealed = next(iter(sorted((run.path / "evaluations").glob(f"*{n}images*ais*.json"))), None)
    truth = None if annealed is None else json.loads(annealed.read_text())["log_evidence"]
    evaluate(run, k=2, limit=2, binarised=False)  # whatever is imported or allocated is done now
    print("| proposal | k | s an image | log evidence | below annealing | median ESS |\n|---|---|---|---|---|---|")
    for proposal, counts in COUNTS.items():
        for k in counts:
            began = time.perf_counter()
            found = evaluate(run, proposal=proposal, k=k, limit=n, binarised=False)
            seconds = (time.perf_counter() - began) / n
            below = "" if truth is None else f"{truth - found.log_evidence:.2f}"
            ess = found.log_evidence_effective_sample_size
            print(
                f"| {proposal} | {k:,} | {seconds:.4f} | {found.log_evidence:.2f} | {below} | {ess:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()

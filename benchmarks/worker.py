"""One contender in a process of its own: it does an epoch whenever a line arrives, and answers with the seconds.

`worker.py --epochs N NAME WORK` does N epochs and ends.
"""

import json
import resource
import sys
import time

from contenders import CONTENDERS, Work


def main() -> None:
    """Answer on the process's own stdout, whatever the contender prints."""
    *options, name, settings = sys.argv[1:]
    settings = json.loads(settings)
    if options:
        epochs = CONTENDERS[name](Work(**settings))
        for _ in range(int(options[1])):
            next(epochs)
        return
    answer, sys.stdout = sys.stdout, sys.stderr
    try:
        epochs = CONTENDERS[name](Work(**settings))
        next(epochs)  # whatever is compiled, allocated or read is done now
    except ImportError as error:
        print(json.dumps({"error": f"not installed ({error.name})"}), file=answer, flush=True)
        return
    print(json.dumps({"ready": True}), file=answer, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        next(epochs)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), file=answer, flush=True)


if __name__ == "__main__":
    main()

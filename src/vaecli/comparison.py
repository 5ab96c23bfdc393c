"""Comparing decoders: the same config trained with each of them and several seeds, evaluated alike."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaecli.config import Config
from vaecli.errors import InterruptedRunError, UsageError, VaecliError
from vaecli.files import write_json
from vaecli.runs import Run, list_runs
from vaecli.sources import fingerprint
from vaecli.stopping import Stop, never

TUTORIAL = ("gaussian", "i-gaussian", "bernoulli")
"""The decoders that the usual tutorial compares."""
PLAN = "comparison.json"


@dataclass(frozen=True)
class Outcome:
    """What came of one decoder and seed."""

    decoder: str
    seed: int
    run: Run | None
    figures: dict[str, Any] = field(default_factory=dict)
    """Of `vaecli.evaluate`, and `seconds_per_epoch`."""
    error: str | None = None

    def per_image(self, name: str) -> NDArray[np.float64] | None:
        """A figure for every image of the test split, if it has been evaluated."""
        path = self.figures.get("path")
        if path is None:
            return None
        with np.load(Path(path).with_suffix(".npz")) as arrays:
            return arrays[name].astype(np.float64) if name in arrays.files else None


@dataclass(frozen=True)
class Comparison:
    """All outcomes, by decoder in the order asked for and by seed."""

    base: Config
    decoders: tuple[str, ...]
    seeds: tuple[int, ...]
    k: int
    outcomes: tuple[Outcome, ...]
    data_dir: Path | None = None
    """Where torchvision's data sets are."""

    def of(self, decoder: str) -> list[Outcome]:
        """The outcomes of a decoder that have figures."""
        return [o for o in self.outcomes if o.decoder == decoder and not o.error]

    def values(self, decoder: str, name: str) -> list[float]:
        """A figure over the seeds of a decoder; empty where the decoder has none."""
        found = [o.figures.get(name) for o in self.of(decoder)]
        return [] if None in found else [float(value) for value in found if value is not None]

    @property
    def failed(self) -> list[Outcome]:
        """The runs that came to nothing."""
        return [o for o in self.outcomes if o.error]


Tell = Callable[[int, int, str], None]
"""Is told how many runs are done, of how many, and of the last one in a line."""


def ignore(done: int, total: int, line: str) -> None:
    """Tell nobody."""


def compare(
    base: Config,
    decoders: Sequence[str],
    n_seeds: int,
    out: Path,
    *,
    runs_dir: Path,
    data_dir: Path | None = None,
    jobs: int = 1,
    k: int = 100,
    tell: Tell = ignore,
    stop: Stop = never,
) -> Comparison:
    """Train and evaluate every decoder with every seed; what is complete already is not done again.

    Args:
        base: The config that all share; its seed is the first.
        decoders: Names of `LIKELIHOODS`.
        n_seeds: How many seeds, counted up from the base's.
        out: The report's directory; it remembers which comparison it holds.
        runs_dir: Where the runs are looked for and made.
        data_dir: As for `train`.
        jobs: Runs at a time, each in a process with its share of the cores.
        k: Importance samples per image.
        tell: Is told of every run that has ended.
        stop: Is asked again and again whether to checkpoint and stop.

    Raises:
        UsageError: The directory holds another comparison.
        DataError: The images cannot be read.
        VaecliError: The directory cannot be written.
        InterruptedRunError: `stop` said so.
    """
    seeds = tuple(range(base.seed, base.seed + n_seeds))
    data = fingerprint(base.data.name)
    _claim(out, base, data, decoders, seeds, k)
    wanted = [member(base, decoder, seed) for seed in seeds for decoder in decoders]
    known = _known_runs(runs_dir, data)
    tasks = [(config, known.get(identity(config)), runs_dir, data_dir, k) for config in wanted]
    outcomes = []
    for i, outcome in enumerate(_run_all(tasks, min(jobs, len(tasks)), stop), start=1):
        outcomes.append(outcome)
        what = outcome.error or f"ELBO {outcome.figures['elbo']:.2f} nats (test)"
        what += f" ({outcome.figures['caveat']})" if outcome.figures.get("caveat") else ""
        tell(i, len(tasks), f"{outcome.decoder}, seed {outcome.seed}: {what}")
    outcomes.sort(key=lambda o: (decoders.index(o.decoder), o.seed))
    return Comparison(base, tuple(decoders), seeds, k, tuple(outcomes), data_dir)


def identity(config: Config) -> str:
    """What makes two runs the same run: all of the config but its name and the device."""
    return json.dumps(config.model_dump(mode="json", exclude={"name", "device"}), sort_keys=True)


def member(base: Config, decoder: str, seed: int) -> Config:
    """The config of one run of a comparison."""
    model = base.model.model_copy(update={"decoder": decoder})
    return base.model_copy(update={"model": model, "seed": seed, "name": base.name or "comparison"})


def _known_runs(runs_dir: Path, data: str | None) -> dict[str, Run]:
    """Runs of these images by identity; of several, the one that has come furthest."""
    known: dict[str, Run] = {}
    for run in list_runs(runs_dir):
        try:
            key = identity(run.config)
        except VaecliError:
            continue
        environment = run.environment
        if environment.get("initialised_from") or environment.get("data_sha256") != data:
            continue  # weights of another run are no seed, and images of the same name may be others
        if key not in known or run.status.get("epoch", 0) > known[key].status.get("epoch", 0):
            known[key] = run
    return known


def _claim(out: Path, base: Config, data: str | None, decoders: Sequence[str], seeds: Sequence[int], k: int) -> None:
    """Take the report's directory for this comparison, or for a wider one of the same base."""
    members = [[decoder, seed] for decoder in decoders for seed in seeds]
    plan = {"base": json.loads(identity(base)), "data_sha256": data, "k": k, "members": members}
    plan["base"]["model"].pop("decoder")
    what = ("base", "data_sha256", "k")
    path = out / PLAN
    try:
        if path.is_file():
            old = json.loads(path.read_text())
            wider = all(member in members for member in old["members"])
            if any(old[key] != plan[key] for key in what) or not wider:
                raise UsageError(f"{out}: holds the report of another comparison; name another directory with --out")
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: is not empty, and not a comparison's; name another directory with --out")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)
    except OSError as error:
        raise VaecliError(f"{out}: cannot be written: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read; name another directory with --out") from error


_Task = tuple[Config, Run | None, Path, Path | None, int]


def _run_all(tasks: Sequence[_Task], jobs: int, stop: Stop) -> Iterator[Outcome]:
    """Every outcome as it comes; one that fails takes no other with it."""
    if jobs <= 1:
        yield from (_complete(task, stop) for task in tasks)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(threads, stopping)) as pool:
        futures = {pool.submit(_complete_in_worker, task): task for task in tasks}
        waiting = set(futures)
        while waiting:
            if stop():
                stopping.set()
                pool.shutdown(cancel_futures=True)
                raise InterruptedRunError("stopped; every run was checkpointed and the same command goes on")
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                config, error = futures[future][0], future.exception()
                if error is None:
                    yield future.result()
                else:  # its process was killed
                    yield Outcome(config.model.decoder, config.seed, None, error=f"{type(error).__name__}: {error}")


_stopping: Event | None = None
"""In a worker, set when it should checkpoint and stop."""


def _start_worker(threads: int, stopping: Event) -> None:
    """Give a worker its share of the cores; signals of the terminal are its parent's to handle."""
    import torch  # noqa: PLC0415 (only workers start with it)

    global _stopping  # noqa: PLW0603 (there is no other way to a worker's tasks)
    _stopping = stopping
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _complete_in_worker(task: _Task) -> Outcome:
    assert _stopping is not None
    return _complete(task, _stopping.is_set)


def _complete(task: _Task, stop: Stop) -> Outcome:
    """Train what is not trained, evaluate what is not evaluated."""
    from vaecli.evaluation import evaluate, evaluation_path  # noqa: PLC0415 (torch)
    from vaecli.training import resume, train  # noqa: PLC0415

    config, run, runs_dir, data_dir, k = task
    try:
        if run is None or not run.last.is_file():
            run = train(config, runs_dir=runs_dir, data_dir=data_dir, stop=stop)
        elif run.status.get("state") not in {"completed", "converged"}:
            run = resume(run, data_dir=data_dir, stop=stop)
        path = evaluation_path(run, k=k)
        if not path.is_file():
            evaluate(run, k=k, device=config.device, data_dir=data_dir)
        figures = json.loads(path.read_text())
        pace = _seconds_per_epoch(run)
    except InterruptedRunError:
        raise
    except VaecliError as error:
        return Outcome(config.model.decoder, config.seed, run, error=str(error))
    except Exception as error:  # noqa: BLE001 (whatever it is, it is this run's alone)
        return Outcome(config.model.decoder, config.seed, run, error=f"{type(error).__name__}: {error}")
    return Outcome(
        config.model.decoder, config.seed, Run(run.path), figures | {"seconds_per_epoch": pace, "path": str(path)}
    )


def _seconds_per_epoch(run: Run) -> float:
    """The median over epochs, which a machine that was busy for a while leaves as it is."""
    seconds = [row["seconds"] for row in run.metrics if row["split"] == "train"]
    return float(np.median(np.diff(seconds, prepend=0.0)))

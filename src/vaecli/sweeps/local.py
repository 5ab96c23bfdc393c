"""Jobs on this machine: in this process one after another, or in several processes that each do many."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from threading import Lock, Thread

from vaecli.config.jobs import Resources
from vaecli.errors import InterruptedRunError, VaecliError
from vaecli.sweeps.sweep import Job, JobResult, RunJobs, plan_jobs
from vaecli.training.stopping import Stop, block_sigint

Group = tuple[int, ...]
"""The numbers of jobs that are trained as one program, being of one config with several seeds; mostly of one job."""
Begin = Callable[[int], object]
"""Is called with the number of a job when work on it starts."""


def group_replicates(planned: Mapping[int, Job], at_most: int, processes: int) -> list[Group]:
    """Group the seeds of each config on CUDA, so many at most and such that every process has some."""
    at_most = min(at_most, -(-len(planned) // processes))
    alike: dict[tuple[str, str], list[int]] = {}
    for i, job in planned.items():
        config = job.config.model_copy(update={"seed": 0})
        alike.setdefault((config.identity, config.device), []).append(i)
    groups = []
    for (_, device), members in alike.items():
        size = at_most if len(members) > 1 and _is_cuda(device) else 1
        groups += [tuple(members[start : start + size]) for start in range(0, len(members), size)]
    return sorted(groups)


def _is_cuda(device: str) -> bool:
    from vaecli.devices import resolve_device  # noqa: PLC0415 (torch)

    try:
        return device not in {"cpu", "mps"} and resolve_device(device).type == "cuda"
    except VaecliError:
        return False  # every job reports it for itself


def run_here(
    planned: Mapping[int, Job], run_jobs: RunJobs, begin: Begin, stop: Stop, resources: Resources
) -> Iterator[tuple[int, JobResult]]:
    """Yield every result, in order."""
    if resources.threads is not None:
        import torch  # noqa: PLC0415 (nothing else here needs it)

        torch.set_num_threads(resources.threads)
    for group in group_replicates(planned, resources.replicates, 1):
        for i in group:
            begin(i)
        yield from zip(group, run_jobs([planned[i] for i in group], stop), strict=True)


def run_in_processes(
    planned: Mapping[int, Job], run_jobs: RunJobs, begin: Begin, stop: Stop, resources: Resources, processes: int
) -> Iterator[tuple[int, JobResult]]:
    """Yield every result as it comes, from so many processes.

    When one is killed, by the system or by a fault of a library, all that were working end with it. Each of their jobs
    is then done alone, so that the one that kills its process takes no other with it.

    Raises:
        InterruptedRunError: `stop` asked for it.
        VaecliError: The processes cannot start.
    """
    threads = resources.threads or max(1, (os.cpu_count() or 1) // processes)
    left, suspects = dict(planned), set[int]()
    while left:
        chosen = {min(suspects)} if suspects else set(left)
        at_once = 1 if suspects else processes
        killed: list[int] = []
        before = len(left)
        groups = group_replicates({i: left[i] for i in sorted(chosen)}, resources.replicates, processes)
        pool = _Pool(run_jobs, begin, stop, min(at_once, len(groups)), threads)
        try:
            for i, result in pool.results(left, groups):
                if result is None:
                    killed.append(i)
                else:
                    del left[i]
                    yield i, result
        except (OSError, ImportError) as error:  # no descriptors, no shared memory, no semaphores at all
            raise VaecliError(f"the worker processes cannot start ({error}); try --jobs 1") from error
        if not killed and len(left) == before:
            raise VaecliError("the worker processes end as soon as they start; try --jobs 1")
        if suspects and killed:
            job = left.pop(killed[0])
            yield killed[0], JobResult(job.config, job.run, error="its process was killed twice")
        elif killed:
            begun = plan_jobs([left[i].config for i in killed], left[killed[0]].options)
            left |= zip(killed, begun, strict=True)
        suspects = (suspects - chosen) if suspects else set(killed)


class _Pool:
    """Run groups of jobs in worker processes.

    Args:
        run_jobs: Does a group's jobs.
        begin: Is called with the number of a job when work on it starts.
        stop: Is asked again and again whether to checkpoint and stop.
        processes: How many.
        threads: Of each.
    """

    def __init__(self, run_jobs: RunJobs, begin: Begin, stop: Stop, processes: int, threads: int) -> None:
        self._run_jobs, self._begin, self._stop = run_jobs, begin, stop
        self._processes, self._threads = processes, threads

    def results(self, planned: Mapping[int, Job], groups: Sequence[Group]) -> Iterator[tuple[int, JobResult | None]]:
        """Yield results as they come, until all groups are done or a process is killed; None for the jobs it had."""
        context = multiprocessing.get_context("spawn")
        stopping, begun, n_started = context.Event(), context.SimpleQueue(), context.Value("i", 0)
        arguments = (self._threads, stopping, begun, n_started)
        running: set[int] = set()
        with ProcessPoolExecutor(self._processes, context, _start_worker, arguments) as pool:
            with block_sigint():
                waiting = {
                    pool.submit(_run_in_worker, self._run_jobs, {i: planned[i] for i in group}): group
                    for group in groups
                }
            while waiting:
                if self._stop():
                    stopping.set()
                    pool.shutdown(cancel_futures=True)
                    raise InterruptedRunError("stopped; the same command resumes every run from its last checkpoint")
                ended, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not begun.empty():
                    running.add(i := begun.get())
                    self._begin(i)
                for future in ended:
                    group = waiting.pop(future)
                    if isinstance(future.exception(), BrokenExecutor):
                        yield from ((i, None) for i in sorted(running.intersection(group)))
                    else:
                        yield from zip(group, future.result(), strict=True)


_stopping: Event | None = None
"""In a worker, set when it should checkpoint and stop."""
_begun: "SimpleQueue[int] | None" = None
"""In a worker, where it says which job it begins."""
_busy = Lock()
"""In a worker, held while it does jobs."""
_sigterms: list[int] = []
"""In a worker, the signals that asked it to end."""


def _start_worker(threads: int, stopping: Event, begun: "SimpleQueue[int]", n_started: "Synchronized[int]") -> None:
    """Give a worker its cores and its GPU."""
    import torch  # noqa: PLC0415 (only workers start with it)

    from vaecli.devices import prefer_gpu  # noqa: PLC0415

    global _stopping, _begun
    _stopping, _begun = stopping, begun
    signal.signal(signal.SIGTERM, _end_after_checkpoint)
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with n_started.get_lock():
        prefer_gpu(n_started.value)
        n_started.value += 1


def _end_with_parent() -> None:
    """End this process when its parent was killed: nobody would take its results, and its run could not go on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _end_after_checkpoint(number: int, _: object) -> None:
    """End on SIGTERM, which a scheduler sends to all processes at once: a run that is being trained is kept first."""
    _sigterms.append(number)
    if not _busy.locked():
        os._exit(1)


def _run_in_worker(run_jobs: RunJobs, group: Mapping[int, Job]) -> list[JobResult]:
    assert _stopping is not None
    assert _begun is not None
    stopping = _stopping
    for i in group:
        _begun.put(i)
    with _busy:
        try:
            return run_jobs(list(group.values()), lambda: bool(_sigterms) or stopping.is_set())
        finally:
            if _sigterms:
                os._exit(1)

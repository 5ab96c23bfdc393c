"""Many runs on this machine: in this process one after another, or in several that each serve many."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from threading import Thread

from vaecli.errors import InterruptedRunError, VaecliError
from vaecli.sweeps.jobs import Job, JobResult, complete_together, tasks
from vaecli.sweeps.news import Board
from vaecli.training.stopping import Stop, block_sigint

Group = tuple[int, ...]
"""The numbers of tasks that are done as one, being of one config with several seeds; mostly of one task."""


def in_groups(planned: Mapping[int, Job], at_most: int, jobs: int) -> list[Group]:
    """Who is trained with whom: on CUDA the seeds of a config, so many at most and such that every job has some."""
    at_most = min(at_most, -(-len(planned) // jobs))
    alike: dict[tuple[str, str], list[int]] = {}
    for i, task in planned.items():
        config = task.config.model_copy(update={"seed": 0})
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
        return False  # which every run says for itself


def in_this_process(
    planned: Mapping[int, Job], board: Board, stop: Stop, threads: int | None, together: int
) -> Iterator[tuple[int, JobResult]]:
    """Every outcome, in order."""
    if threads is not None:
        import torch  # noqa: PLC0415 (nothing else here needs it)

        torch.set_num_threads(threads)
    for group in in_groups(planned, together, 1):
        for i in group:
            board.began(i)
        yield from zip(group, complete_together([planned[i] for i in group], stop), strict=True)


def in_processes(
    planned: Mapping[int, Job], board: Board, stop: Stop, jobs: int, threads: int, together: int
) -> Iterator[tuple[int, JobResult]]:
    """Every outcome as it comes, from so many processes.

    When one is killed, by the system or by a fault of a library, all that were at work end with it. Each of their runs
    then goes on alone, so that the one that kills its process takes no other with it.

    Raises:
        InterruptedRunError: `stop` said so.
        VaecliError: The processes cannot begin.
    """
    left, suspects = dict(planned), set[int]()
    while left:
        chosen = {min(suspects)} if suspects else set(left)
        at_once = 1 if suspects else jobs
        cut: list[int] = []
        before = len(left)
        groups = in_groups({i: left[i] for i in sorted(chosen)}, together, jobs)
        for i, outcome in _in_a_pool(left, groups, at_once, threads, board, stop):
            if outcome is None:
                cut.append(i)
            else:
                del left[i]
                yield i, outcome
        if not cut and len(left) == before:
            raise VaecliError("the processes that should do the runs end as soon as they begin; try --jobs 1")
        if suspects and cut:
            task = left.pop(cut[0])
            yield cut[0], JobResult(task.config, task.known, error="its process was killed twice")
        elif cut:
            begun = tasks([left[i].config for i in cut], left[cut[0]].work)
            left |= zip(cut, begun, strict=True)
        suspects = (suspects - chosen) if suspects else set(cut)


def _in_a_pool(
    planned: Mapping[int, Job], groups: Sequence[Group], jobs: int, threads: int, board: Board, stop: Stop
) -> Iterator[tuple[int, JobResult | None]]:
    """Outcomes as they come, until all groups have theirs or a process is killed; None for those it was killed at."""
    context = multiprocessing.get_context("spawn")
    stopping, begun, n_started = context.Event(), context.SimpleQueue(), context.Value("i", 0)
    with ProcessPoolExecutor(
        min(jobs, len(groups)), context, _start_worker, (threads, stopping, begun, n_started)
    ) as pool:
        with block_sigint():
            waiting = {pool.submit(_complete_in_worker, {i: planned[i] for i in group}): group for group in groups}
        while waiting:
            if stop():
                stopping.set()
                pool.shutdown(cancel_futures=True)
                raise InterruptedRunError("stopped; every run was checkpointed, and the same command goes on")
            ended, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not begun.empty():
                board.began(begun.get())
            for future in ended:
                group = waiting.pop(future)
                if not isinstance(future.exception(), BrokenExecutor):
                    yield from zip(group, future.result(), strict=True)
                    continue
                for i in board.running.intersection(group):
                    board.running.discard(i)
                    yield i, None


_stopping: Event | None = None
"""In a worker, set when it should checkpoint and stop."""
_begun: "SimpleQueue[int] | None" = None
"""In a worker, where it says which run it begins."""


def _start_worker(threads: int, stopping: Event, begun: "SimpleQueue[int]", n_started: "Synchronized[int]") -> None:
    """Give a worker its cores and its GPU."""
    import torch  # noqa: PLC0415 (only workers start with it)

    from vaecli.devices import prefer_gpu  # noqa: PLC0415

    global _stopping, _begun
    _stopping, _begun = stopping, begun
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with n_started.get_lock():
        prefer_gpu(n_started.value)
        n_started.value += 1


def _end_with_parent() -> None:
    """End this process when its parent was killed: nobody would take what it does, and its run could not go on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _complete_in_worker(group: Mapping[int, Job]) -> list[JobResult]:
    assert _stopping is not None
    assert _begun is not None
    for i in group:
        _begun.put(i)
    return complete_together(list(group.values()), _stopping.is_set)

"""Several runs trained as one batched program, each of which could be trained alone."""

from collections.abc import Callable, Mapping

from vaecli.training.accelerate import choose_step
from vaecli.training.session import Session
from vaecli.training.state import Chunk
from vaecli.training.step import Step


def train_replicates(
    sessions: Mapping[int, Session], before_round: Callable[[], object] = lambda: None
) -> dict[int, Exception]:
    """Train runs whose configs differ in nothing but the seed, each to its end.

    The steps of those that stand at the same one are made as one (`vaecli.training.accelerate.VmappedStep`); where some
    are behind, these go first. When a run ends or fails, the others continue without it.

    Args:
        sessions: By whatever number the caller gives them.
        before_round: Is called before the steps of a round are made.

    Returns:
        What ended a run before its time, for each run that did not come to its end.
    """
    replicates = _Replicates(sessions)
    try:
        for i in sessions:
            replicates.start(i)
        while replicates.chunks:
            before_round()
            replicates.make_steps(replicates.furthest_behind())
    except BaseException as error:
        replicates.close_all(error)
        raise
    return replicates.failures


class _Replicates:
    """Interleave the chunks of several sessions."""

    def __init__(self, sessions: Mapping[int, Session]) -> None:
        self._sessions = sessions
        self._iterators = {i: session.chunks() for i, session in sessions.items()}
        self._open: set[int] = set()
        self._step: tuple[tuple[int, ...], Step] | None = None
        self.chunks: dict[int, Chunk] = {}
        """The next chunk of each session that goes on."""
        self.failures: dict[int, Exception] = {}

    def start(self, i: int) -> None:
        """Enter a session, and ask for its first chunk."""
        try:
            self._sessions[i].__enter__()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this run's alone)
            self.failures[i] = error
            return
        self._open.add(i)
        self._continue(i, lambda: None)

    def furthest_behind(self) -> tuple[int, ...]:
        """Return the sessions at the lowest step, and on one device."""
        states = {i: self._sessions[i].state for i in self.chunks}
        first = min(states, key=lambda i: states[i].progress.step)
        where = (states[first].progress.step, states[first].vae.device)
        return tuple(i for i, state in states.items() if (state.progress.step, state.vae.device) == where)

    def make_steps(self, group: tuple[int, ...]) -> None:
        """Make the steps of a group's chunks, and advance each of its sessions."""
        try:
            terms = self._step_of(group)(*(self.chunks[i] for i in group))
        except Exception as error:  # noqa: BLE001 (the status of each run says so)
            for i in group:
                self._close(i, error)
            return
        for i, own in zip(group, terms.unbind(1) if len(group) > 1 else [terms], strict=True):
            self._continue(i, lambda i=i, own=own: self._sessions[i].advance(self.chunks[i], own))  # type: ignore[misc]

    def close_all(self, error: BaseException) -> None:
        """Close every session that is open."""
        for i in tuple(self._open):
            self._close(i, error)

    def _continue(self, i: int, advance: Callable[[], None]) -> None:
        """Advance a session and ask for its next chunk; close it where it ends or fails."""
        try:
            advance()
            chunk = next(self._iterators[i], None)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this run's alone)
            self._close(i, error)
            return
        if chunk is None:
            self._close(i, None)
        else:
            self.chunks[i] = chunk

    def _close(self, i: int, error: BaseException | None) -> None:
        self._open.discard(i)
        self.chunks.pop(i, None)
        session = self._sessions[i]
        failure = session.close(error)
        session.state.leave_group()
        if isinstance(failure, Exception):
            self.failures[i] = failure.with_traceback(None)

    def _step_of(self, group: tuple[int, ...]) -> Step:
        """Return what makes the steps of a group, the same as long as the group is."""
        if self._step is None or self._step[0] != group:
            self._step = None  # and its tensors with it
            self._step = (group, choose_step([self._sessions[i].state for i in group]))
        return self._step[1]

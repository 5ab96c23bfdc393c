"""Several runs trained as one batched program, each of which could be trained alone."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial

from vaecli.training.session import Training
from vaecli.training.step import Portion, Step, new_step


def train_together(
    trainings: Mapping[int, Training], before_round: Callable[[], object] = lambda: None
) -> dict[int, Exception]:
    """Train runs whose configs differ in nothing but the seed, each to its end.

    The steps of those that stand at the same one are made as one (`vaecli.training.step.Replicates`); where some are
    behind, these go first. When a run ends or fails, the others go on without it.

    Args:
        trainings: By whatever number the caller gives them.
        before_round: Is called before the steps of a round are made.

    Returns:
        What ended a run before its time, for each that it befell.
    """
    runs = _Runs(trainings)
    with ExitStack() as stack:
        for i, training in trainings.items():
            stack.enter_context(closing(training.portions))
            runs.hear(i, training.portions.__next__)
        while runs.asking:
            before_round()
            runs.go(runs.furthest_behind())
    return runs.failed


class _Runs:
    """What each asks for, and what it has failed at."""

    def __init__(self, trainings: Mapping[int, Training]) -> None:
        self._trainings = trainings
        self._step: tuple[tuple[int, ...], Step] | None = None
        self.asking: dict[int, Portion] = {}
        self.failed: dict[int, Exception] = {}

    def hear(self, i: int, say: Callable[[], Portion]) -> None:
        """What a run asks for after something was said to it, if it goes on."""
        self.asking.pop(i, None)
        try:
            self.asking[i] = say()
        except StopIteration:
            self._trainings[i].state.leave_the_others()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this run's alone)
            self._trainings[i].state.leave_the_others()
            self.failed[i] = error.with_traceback(None)

    def furthest_behind(self) -> tuple[int, ...]:
        """The runs at the lowest step, and on one device."""
        states = {i: self._trainings[i].state for i in self.asking}
        first = min(states, key=lambda i: states[i].progress.step)
        there = (states[first].progress.step, states[first].vae.device)
        return tuple(i for i, state in states.items() if (state.progress.step, state.vae.device) == there)

    def go(self, group: tuple[int, ...]) -> None:
        """Make the steps that a group asks for."""
        portions = [self._trainings[i].portions for i in group]
        try:
            figures = self._step_of(group)(*(self.asking[i] for i in group))
        except Exception as error:  # noqa: BLE001 (is told to where the status of each is kept)
            for i, portion in zip(group, portions, strict=True):
                self.hear(i, partial(portion.throw, error))
            return
        of_each = figures.unbind(1) if len(group) > 1 else [figures]
        for i, portion, its_own in zip(group, portions, of_each, strict=True):
            self.hear(i, partial(portion.send, its_own))

    def _step_of(self, group: tuple[int, ...]) -> Step:
        """What makes the steps of a group, as long as it is the same."""
        if self._step is None or self._step[0] != group:
            self._step = None  # and its tensors with it
            members = [self._trainings[i] for i in group]
            self._step = (group, new_step([member.state for member in members], members[0].observe))
        return self._step[1]

"""Several runs trained as one batched program, each of which could be trained alone."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial

from vaecli.steps import Portion, Step, new_step
from vaecli.training import Training


def train_together(trainings: Mapping[int, Training]) -> dict[int, Exception]:
    """Train runs whose configs differ in nothing but the seed, each to its end.

    The steps of those that stand at the same one are made as one (`vaecli.steps.Replicates`); when a run ends or fails,
    the others go on without it.

    Args:
        trainings: By whatever number the caller gives them.

    Returns:
        What ended a run before its time, for each that it befell.
    """
    runs = _Runs(trainings)
    steps: dict[tuple[int, ...], Step] = {}
    with ExitStack() as stack:
        for i, training in trainings.items():
            stack.enter_context(closing(training.portions))
            runs.hear(i, training.portions.__next__)
        while runs.asking:
            steps = {group: steps.get(group) or runs.step_of(group) for group in runs.at_the_same_step()}
            for group, step in steps.items():
                runs.go(group, step)
    return runs.failed


class _Runs:
    """What each asks for, and what it has failed at."""

    def __init__(self, trainings: Mapping[int, Training]) -> None:
        self._trainings = trainings
        self.asking: dict[int, Portion] = {}
        self.failed: dict[int, Exception] = {}

    def hear(self, i: int, say: Callable[[], Portion]) -> None:
        """What a run asks for after something was said to it, if it goes on."""
        self.asking.pop(i, None)
        try:
            self.asking[i] = say()
        except StopIteration:
            pass
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this run's alone)
            self.failed[i] = error

    def at_the_same_step(self) -> Sequence[tuple[int, ...]]:
        groups: dict[int, tuple[int, ...]] = {}
        for i in self.asking:
            step = self._trainings[i].state.progress.step
            groups[step] = (*groups.get(step, ()), i)
        return list(groups.values())

    def step_of(self, group: Sequence[int]) -> Step:
        members = [self._trainings[i] for i in group]
        return new_step([member.state for member in members], members[0].observe)

    def go(self, group: Sequence[int], step: Step) -> None:
        """Make the steps that a group asks for."""
        portions = [self._trainings[i].portions for i in group]
        try:
            figures = step(*(self.asking[i] for i in group))
        except Exception as error:  # noqa: BLE001 (is told to where the status of each is kept)
            for i, portion in zip(group, portions, strict=True):
                self.hear(i, partial(portion.throw, error))
            return
        of_each = figures.unbind(1) if len(group) > 1 else [figures]
        for i, portion, its_own in zip(group, portions, of_each, strict=True):
            self.hear(i, partial(portion.send, its_own))

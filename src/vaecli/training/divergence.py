"""Training that has diverged: which term did so, at which step, on which images."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vaecli.data.preprocess import Batch
from vaecli.errors import DivergedError, VaecliError
from vaecli.model.objectives import build_objective
from vaecli.runs.checkpoint import Checkpoint
from vaecli.training.state import Minibatch, TrainingState

MAX_IMAGES = 5
"""Images named in a message."""


def check_finite(state: TrainingState) -> None:
    """Raise DivergedError where a term of this epoch's steps, a parameter or a buffer is not finite.

    The terms are kept on the device step by step, so that the first bad one is known without waiting for any.
    """
    bad = ~state.trace[: state.progress.position].isfinite().all(1)
    if bad.any():
        step = state.progress.step - state.progress.position + int(bad.int().argmax()) + 1
    elif all(tensor.isfinite().all() for tensor in (*state.vae.parameters(), *state.vae.buffers())):
        return
    else:
        step = state.progress.step
    raise DivergedError(f"training diverged at step {step}", step)


def explain(
    state: TrainingState, good: Checkpoint, step: int, make_steps: Callable[[Sequence[Minibatch]], Tensor]
) -> str:
    """Return to a good checkpoint, repeat the steps from there, and say what was the first not to be finite.

    Args:
        state: Of the run; it is changed.
        good: The last checkpoint.
        step: Where something was found not to be finite; it may have begun a step earlier, in the gradient.
        make_steps: Makes eager steps of the state.
    """
    found, where = None, f"step {step}"
    try:
        state.restore(good)
        for minibatch in _minibatches_up_to(step, state):
            at, epoch = state.progress.step + 1, state.progress.epoch + 1
            if at <= step - 2:
                state.count([minibatch], make_steps([minibatch]))
                continue
            found = _examine(state, minibatch, make_steps)
            if found is not None:
                where = f"step {at} (epoch {epoch})"
                break
    except VaecliError:
        pass
    if found is None:  # other threads, a file that is gone, or it went another way in eager steps
        found = "a term or a parameter is not finite"
    floor = "" if state.config.model.min_log_sigma is not None else ", and so does a floor, model.min_log_sigma=-7"
    return (
        f"training diverged at {where}: {found}; the last good checkpoint is kept. "
        f"A smaller optimizer.learning_rate usually helps{floor}"
    )


def _minibatches_up_to(step: int, state: TrainingState) -> Iterator[Minibatch]:
    """Yield the minibatches of the steps that are left up to one; each is to be counted before the next."""
    while state.progress.step < step:
        for chunk in state.chunks():
            for minibatch in chunk:
                if state.progress.step < step:
                    yield minibatch
        state.end_epoch()


def _examine(
    state: TrainingState, minibatch: Minibatch, make_steps: Callable[[Sequence[Minibatch]], Tensor]
) -> str | None:
    """Make one step, and say what in it is not finite."""
    before, rows, objective = state.capture({}), state.rows()[0], build_objective(state.config.objective)
    x, target, epsilon, *_ = state.draw(minibatch.pixels)
    with torch.no_grad():
        surrogate, elbo = objective(state.vae, Batch(x, target), epsilon, minibatch.kl_weight)
    state.restore(before)
    state.count([minibatch], make_steps([minibatch]))
    for name, term in {"log-likelihood": elbo.log_likelihood, "KL term": elbo.kl, "bound": surrogate}.items():
        bad = ~term.isfinite()
        if bad.any():
            return f"the {name} of {_images(rows[bad])} of the training split is {term[bad][0].item()}"
    for name, parameter in state.vae.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name} is not finite"
    for name, tensor in state.vae.state_dict().items():
        if not tensor.isfinite().all():
            return f"{name} is not finite after the step"
    return None


def _images(rows: Tensor) -> str:
    """Name images by their number in the split."""
    numbers = [str(number) for number in rows[:MAX_IMAGES].tolist()]
    more = f" and {len(rows) - MAX_IMAGES} more" if len(rows) > MAX_IMAGES else ""
    return f"image{'s' if len(rows) > 1 else ''} {', '.join(numbers)}{more}"

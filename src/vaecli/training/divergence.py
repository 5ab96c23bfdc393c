"""Training that has diverged: that it has, and by which term, at which step, on which images."""

from collections.abc import Callable

import torch
from torch import Tensor

from vaecli.data.observations import Observe
from vaecli.errors import DivergedError, VaecliError
from vaecli.model.objectives import kl_weight, noise, objective
from vaecli.runs.checkpoint import Checkpoint
from vaecli.training.state import TrainingState, TrainingStream

NOISE: tuple[TrainingStream, ...] = ("pixels", "epsilon")
"""The streams that a step draws from."""
MOST_IMAGES = 5
"""Images named in a message."""


def check_finite(state: TrainingState) -> None:
    """Raise DivergedError where a term of this epoch's steps or a parameter is not finite.

    The terms are kept on the device step by step, so that the first bad one is known without waiting for any.
    """
    bad = ~state.trace[: state.progress.position].isfinite().all(1)
    if bad.any():
        step = state.progress.step - state.progress.position + int(bad.int().argmax()) + 1
    elif all(parameter.isfinite().all() for parameter in state.vae.parameters()):
        return
    else:
        step = state.progress.step
    raise DivergedError(f"training diverged at step {step}", step)


def explain(state: TrainingState, good: Checkpoint, observe: Observe, step: int, repeat: Callable[[int], None]) -> str:
    """Go back to a good checkpoint, repeat the steps from there, and say what was the first not to be finite.

    Args:
        state: Of the run; it is moved.
        good: The last checkpoint.
        observe: How pixels become x.
        step: Where something was found not to be finite; it may have begun a step earlier, in the gradient.
        repeat: Trains up to a step.
    """
    found = None
    try:
        state.restore(good)
        repeat(max(state.progress.step, step - 2))
        while found is None and state.progress.step < step:
            at, epoch = state.progress.step + 1, state.progress.epoch + 1
            found = _examine(state, observe, repeat)
            where = f"step {at} (epoch {epoch})"
    except VaecliError:
        pass
    if found is None:  # other threads, a file that is gone, or it went another way in plain steps
        found, where = "a term or a parameter is not finite", f"step {step}"
    floor = "" if state.config.model.min_log_sigma is not None else ", and so does a floor, model.min_log_sigma=-7"
    return (
        f"training diverged at {where}: {found}; the last good checkpoint is kept. "
        f"A smaller optimizer.learning_rate usually helps{floor}"
    )


def _examine(state: TrainingState, observe: Observe, repeat: Callable[[int], None]) -> str | None:
    """Make one step, and say what in it is not finite."""
    config, streams = state.config.objective, {stream: state.generators[stream].get_state() for stream in NOISE}
    rows = state.rows()[0]
    batch = observe(next(state.minibatches()), state.generators["pixels"])
    epsilon = noise(state.vae, batch, config.L, state.generators["epsilon"])
    with torch.no_grad():
        weight = kl_weight(config, state.progress.step, state.steps_per_epoch)
        bound, elbo = objective(config)(state.vae, batch, epsilon, weight)
    for stream, before in streams.items():
        state.generators[stream].set_state(before)
    terms = {"log-likelihood": elbo.log_likelihood, "KL term": elbo.kl, "bound": bound}
    repeat(state.progress.step + 1)
    for name, term in terms.items():
        bad = ~term.isfinite()
        if bad.any():
            return f"the {name} of {_images(rows[bad])} of the training split is {term[bad][0].item()}"
    for name, parameter in state.vae.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name} is not finite"
    for name, parameter in state.vae.named_parameters():
        if not parameter.isfinite().all():
            return f"{name} is not finite after the step"
    return None


def _images(rows: Tensor) -> str:
    """Which images, by their number in the split."""
    numbers = [str(number) for number in rows[:MOST_IMAGES].tolist()]
    more = f" and {len(rows) - MOST_IMAGES} more" if len(rows) > MOST_IMAGES else ""
    return f"image{'s' if len(rows) > 1 else ''} {', '.join(numbers)}{more}"

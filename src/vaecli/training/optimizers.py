"""Optimisers and their step sizes: gradient steps whose size differs from parameter to parameter.

The arithmetic is that of `torch.optim`, kernel for kernel, and so are the bits. What is left out is what surrounds it
there: at its first use it imports torch's compiler, a second of a run's start, and it sorts its tensors at every step.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from vaecli.config.sections import OptimizerConfig

Moments = dict[str, Tensor]
"""The running statistics of one parameter, by name; each of its shape."""


class Optimizer(ABC):
    """Move parameters against their gradients; subclasses are final.

    Args:
        parameters: All on one device; their moments start at zero.
        weight_decay: λ; λθ is added to the gradient of each θ.
        epsilon: ε; None for the optimiser's own.
    """

    moment_names: ClassVar[tuple[str, ...]]
    """The names of each parameter's moments."""
    default_epsilon: ClassVar[float]

    def __init__(
        self, parameters: Iterable[nn.Parameter], weight_decay: float = 0.0, epsilon: float | None = None
    ) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.weight_decay = weight_decay
        self.epsilon = self.default_epsilon if epsilon is None else epsilon
        self.n_steps = torch.zeros((), device=self.parameters[0].device)
        """Steps made so far; on the device, so that a step can be recorded there."""
        self.moments = {
            name: [torch.zeros_like(p, requires_grad=False) for p in self.parameters] for name in self.moment_names
        }

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor) -> None:
        """Move every parameter.

        Args:
            learning_rate: Of this step; if a tensor, of one float32 on the parameters' device.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self.n_steps.device.type == "cuda" and not isinstance(learning_rate, Tensor):
            learning_rate = torch.full_like(self.n_steps, learning_rate)  # float32, as in a recorded step
        self.n_steps += 1
        self._move(gradients, learning_rate)

    @abstractmethod
    def _move(self, gradients: list[Tensor], learning_rate: float | Tensor) -> None:
        """Move every parameter along its gradient; there is one gradient a parameter."""

    def state_dict(self) -> dict[int, Moments]:
        """Return the moments of each parameter, by its number."""
        return {i: {name: of_all[i] for name, of_all in self.moments.items()} for i in range(len(self.parameters))}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[int, Mapping[str, Tensor]], n_steps: int) -> None:
        """Copy the moments of each parameter, and the number of steps made with them.

        Raises:
            ValueError: The moments are those of another optimiser.
        """
        own = self.state_dict()
        if state.keys() != own.keys() or any(state[i].keys() != own[i].keys() for i in own):
            raise ValueError(f"the optimiser's state is not that of {type(self).__name__}")
        for i, moments in own.items():
            for name, tensor in moments.items():
                tensor.copy_(state[i][name])
        self.n_steps.fill_(n_steps)

    @torch.no_grad()
    def stack(self, others: Sequence["Optimizer"]) -> None:
        """Take over the moments of others, of whose parameters this one's are stacks; theirs become views of it."""
        for name, moments in self.moments.items():
            for i in range(len(moments)):
                moments[i] = torch.stack([other.moments[name][i] for other in others])
                for own, other in zip(moments[i], others, strict=True):
                    other.moments[name][i] = own


@final
class Adam(Optimizer):
    """Step θ ← θ - α m̂/(√v̂ + ε), by running means m of the gradient and v of its square (Kingma & Ba 2014)."""

    moment_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    default_epsilon: ClassVar[float] = 1e-8

    def _move(self, gradients: list[Tensor], learning_rate: float | Tensor) -> None:
        torch._fused_adam_(  # type: ignore[call-overload]
            self.parameters,
            gradients,
            *self.moments.values(),
            [],
            [self.n_steps] * len(gradients),
            lr=learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
        )


@final
class Adagrad(Optimizer):
    """Step θ ← θ - α g/(√Σg² + ε), the sum being over all steps (Duchi et al. 2011)."""

    moment_names: ClassVar[tuple[str, ...]] = ("sum",)
    default_epsilon: ClassVar[float] = 1e-10

    def _move(self, gradients: list[Tensor], learning_rate: float | Tensor) -> None:
        if self.n_steps.device.type != "cpu":  # not every torch has a kernel for it there
            self._move_each(gradients, learning_rate)
            return
        torch._fused_adagrad_(
            self.parameters,
            gradients,
            self.moments["sum"],
            [self.n_steps] * len(gradients),
            lr=learning_rate,
            lr_decay=0.0,
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            maximize=False,
        )

    def _move_each(self, gradients: list[Tensor], learning_rate: float | Tensor) -> None:
        for parameter, gradient, total in zip(self.parameters, gradients, self.moments["sum"], strict=True):
            if self.weight_decay:
                gradient.add_(parameter, alpha=self.weight_decay)
            total.addcmul_(gradient, gradient)
            parameter.sub_(gradient.div_(total.sqrt().add_(self.epsilon)).mul_(learning_rate))


OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adagrad": Adagrad}


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Build the optimiser that a config names."""
    return OPTIMIZERS[config.name](parameters, config.weight_decay, config.epsilon)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "burda": lambda left: 10 ** (-min(7, math.floor(math.log(1 + 6560 * (1 - left), 3) + 1e-9)) / 7),
}
"""The factor of the step size, by what share of the run is left."""


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the step size at a step 0..steps: constant; falling to 0 on a line or on half a cosine; or in stages.

    The stages are those of Burda et al. (2015, arXiv 1509.00519, section 5): 10^(-i/7) during 3^i of 3,280 passes, i
    from 0 to 7. Stage i ends at pass (3^(i+1) - 1)/2; a run of other length has them in the same shares.
    """
    return config.learning_rate * SCHEDULES[config.schedule](1 - step / steps)

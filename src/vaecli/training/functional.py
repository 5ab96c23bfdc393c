"""Functions of a model as functions of tensors, to be vmapped or compiled."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vaecli.model.vae import VAE
from vaecli.training.stopping import block_sigint

Compiled = Callable[..., Sequence[Tensor]]
"""A function of tensors, recorded and compiled."""
_COMPILER = threading.Lock()
"""The compiler is one for the process, and may still be at work for a run that was stopped meanwhile."""


class Functional(nn.Module):
    """Turn a function of a model and more into one of its parameters, its buffers and more: to be compiled, or vmapped.

    Args:
        vae: The model.
        function: Is called with the model first.
    """

    def __init__(self, vae: VAE, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.vae, self._function = vae, function
        self._parameter_names = [name for name, _ in self.named_parameters()]
        self._buffer_names = [name for name, _ in self.named_buffers()]

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the function's result with the model as it is."""
        return self._function(self.vae, *inputs)

    def at(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor], *inputs: Any) -> tuple[Tensor, ...]:
        """Return the function's result with other tensors than the model's own."""
        tensors = dict(zip(self._parameter_names, parameters, strict=True))
        tensors |= zip(self._buffer_names, buffers, strict=True)
        result: tuple[Tensor, ...] = functional_call(self, tensors, inputs)
        return result


def compile_function(function: Compiled, example: Sequence[Tensor]) -> Compiled:
    """Compile a function of tensors, of which an example is given."""
    from torch._inductor import compile as compile_graph  # noqa: PLC0415 (a second, and not every run compiles)
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
    # SIGINT is blocked, or a Ctrl-C would end the compiler, which is a process of its own.
    with _COMPILER, block_sigint():
        with torch.enable_grad():
            operations = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*example)
        with torch.no_grad():
            compiled: Compiled = compile_graph(operations, list(example))
    return torch.no_grad()(compiled)

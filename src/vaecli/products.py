"""Matrix products of linear layers, by one of two libraries: the one that torch takes for them, or oneDNN.

On a CPU torch takes float32 products from the library that it was built with, MKL as a rule. On AMD's processors with
AVX-512, oneDNN needs little more than half of MKL's time, and every torch for x86 contains it; but it has only
`mkldnn::_linear_pointwise` for such products, which its compiler emits for weights that never change. That is not a
public function, so it is tried before it is relied on. The public way, `Tensor.to_mkldnn`, copies factors and product,
and its gradient in the weights takes several times as long.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

Library = Literal["torch", "onednn"]

_OPERATORS = torch.library.Library("vaecli", "DEF")
_OPERATORS.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if 0 in {*x.shape, *weight.shape}:  # which oneDNN refuses
        return torch.nn.functional.linear(x, weight, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product


def _shape_of_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return x.new_empty(len(x), len(weight))


# An operator of its own is what the compiler calls as it is; oneDNN's it would replace, for weights that never change.
_OPERATORS.impl("linear", _onednn_linear, "CPU")
torch.library.register_fake("vaecli::linear", _shape_of_linear, lib=_OPERATORS)


class _OneDnnLinear(Function):
    """Compute x Wᵀ + b, whose derivatives are such products again."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor = torch.ops.vaecli.linear.default(x, weight, bias)
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:  # noqa: ARG004
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        of_x = onednn_linear(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = onednn_linear(gradient.t(), x.t()) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum(0) if ctx.has_bias else None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, tangents
        parts = [] if of_bias is None else [of_bias.expand(len(x), -1)]
        parts += [] if of_x is None else [onednn_linear(of_x, weight)]
        parts += [] if of_weight is None else [onednn_linear(x, of_weight)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *tensors: Tensor | None) -> tuple[Tensor, int]:
        x, weight, bias = tensors
        assert x is not None
        assert weight is not None
        if in_dims[0] is not None and in_dims[1:] == (None, None):  # the same layer for all: one product
            x = x.movedim(in_dims[0], 0)
            return onednn_linear(x.flatten(0, 1), weight, bias).unflatten(0, x.shape[:2]), 0
        each = [
            [tensor] * info.batch_size if tensor is None or dim is None else tensor.unbind(dim)
            for tensor, dim in zip(tensors, in_dims, strict=True)
        ]
        products: list[Tensor] = [_OneDnnLinear.apply(*one) for one in zip(*each, strict=True)]
        return torch.stack(products), 0


def onednn_linear(
    x: Float[Tensor, "B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "B O"]:
    """Return x Wᵀ + b by oneDNN, for float32 on the CPU."""
    product: Tensor = _OneDnnLinear.apply(x, weight, bias)
    return product


class Linear(nn.Linear):
    """Compute x Wᵀ + b for x of shape (*batch, I), its products and those of its gradient by a library of choice."""

    library: Library = "torch"

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """Return the layer's output. What is not float32 is left to torch."""
        if self.library == "torch" or x.dtype != torch.float32:
            return super().forward(x)
        y = onednn_linear(x.reshape(-1, self.in_features), self.weight, self.bias)
        return y.view(*x.shape[:-1], self.out_features)


def use_library(network: nn.Module, library: Library) -> None:
    """Have the products of all linear layers of a network made by a library."""
    for layer in network.modules():
        if isinstance(layer, Linear):
            layer.library = library


@cache
def has_onednn(device: torch.device) -> bool:
    """Return whether oneDNN's operator is there and its product, with strides of either kind, is that of torch."""
    if device.type != "cpu":
        return False
    x, weight, bias = torch.linspace(-1, 1, 21).view(3, 7), torch.linspace(-1, 2, 35).view(7, 5).t(), torch.ones(5)
    try:
        return torch.allclose(_onednn_linear(x, weight, bias), torch.addmm(bias, x, weight.t()), rtol=1e-5, atol=1e-5)
    except Exception:  # noqa: BLE001 (a function that is not public may fail in any way)
        return False

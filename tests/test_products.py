"""Linear layers by oneDNN are linear layers: their values, gradients, and what transforms make of them."""

import pytest
import torch
from torch.func import jvp, vmap

from vaecli import products
from vaecli.products import Linear, has_onednn, use_library

CPU = torch.device("cpu")
onednn = pytest.mark.skipif(not has_onednn(CPU), reason="this torch has no oneDNN")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def layers(n_in, n_out):
    """Return the same layer twice, by oneDNN and by torch."""
    ours, theirs = Linear(n_in, n_out), Linear(n_in, n_out)
    theirs.load_state_dict(ours.state_dict())
    use_library(ours, "onednn")
    return ours, theirs


@onednn
@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (0, 5), (3, 7, 5), (5,)])
def test_values_and_gradients_are_those_of_torch(shape):
    ours, theirs = layers(5, 11)
    x = torch.randn(shape)
    of_ours, of_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(of_ours), theirs(of_theirs)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    weights = torch.randn(expected.shape)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in ((of_ours, of_theirs), (ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        torch.testing.assert_close(one.grad, other.grad, **TOLERANCE)


@onednn
def test_factors_that_are_views_make_the_same_product():
    ours, theirs = layers(5, 11)
    x = torch.randn(5, 7).t()
    torch.testing.assert_close(ours(x), theirs(x), **TOLERANCE)


@onednn
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it
def test_a_derivative_along_a_direction_is_that_of_torch():
    ours, theirs = layers(5, 11)
    x, directions = torch.randn(7, 5), torch.randn(4, 5)

    def along(layer):
        return vmap(lambda direction: jvp(layer, (x,), (direction.expand_as(x),))[1])(directions)

    torch.testing.assert_close(along(ours), along(theirs), **TOLERANCE)
    everything = (x, torch.randn(11, 5), torch.randn(11))
    tangents = tuple(torch.randn(part.shape) for part in everything)
    (_, one), (_, other) = (
        jvp(linear, everything, tangents) for linear in (products.onednn_linear, torch.nn.functional.linear)
    )
    torch.testing.assert_close(one, other, **TOLERANCE)


@onednn
def test_several_layers_side_by_side_are_each_alone():
    """With other weights for each, as seeds that are trained as one program have; and with the same for all."""
    weight, bias, x = torch.randn(3, 11, 5), torch.randn(3, 11), torch.randn(3, 7, 5)
    together = vmap(products.onednn_linear)(x, weight, bias)
    for r in range(3):
        torch.testing.assert_close(together[r], x[r] @ weight[r].T + bias[r], **TOLERANCE)
    torch.testing.assert_close(
        vmap(products.onednn_linear, in_dims=(0, None, None))(x, weight[0], bias[0]),
        x @ weight[0].T + bias[0], **TOLERANCE,
    )  # fmt: skip


@onednn
def test_float64_is_left_to_torch():
    ours, theirs = (layer.double() for layer in layers(5, 11))
    x = torch.randn(7, 5, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))

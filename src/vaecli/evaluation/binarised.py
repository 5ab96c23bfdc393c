"""The binarised model: every decoder with a mean in the unit interval is a model of binarised images.

If b_d ~ Bern(x_d) given x, then p(b|z) = Π_d Bern(b_d; E[x_d|z]): exact, and through the decoder's mean alone. The
proposal matters as much as the decoder: a posterior fitted to grey levels is far too narrow for binary images, so the
encoder is fitted again, to b, with the decoder frozen.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.config.likelihoods import Support
from vaecli.config.schema import Config, OptimizerConfig
from vaecli.data.dataset import Dataset, Images, binarize_dynamically
from vaecli.errors import VaecliError
from vaecli.files import write_atomically
from vaecli.model.conditionals import Conditional
from vaecli.model.distributions import IndependentBernoulli
from vaecli.model.estimators import evaluate_bound
from vaecli.model.objectives import draw_noise, estimator_b, loss
from vaecli.model.vae import VAE, build_vae
from vaecli.randomness import generator
from vaecli.runs.run import Run
from vaecli.training.optimizers import build_optimizer, learning_rate

MARGIN = 1e-3
"""Probabilities are kept this far from 0 and 1; from 1e-7 to 1e-3 it changes the result by less than a nat."""
EPOCHS, PATIENCE = 10, 2
BATCH_SIZE = 100
OPTIMIZER = OptimizerConfig(name="adam", learning_rate=2e-3, schedule="cosine")
"""The one budget of every refitted encoder, stopped by the validation ELBO."""


@final
class BinarisedDecoder(Conditional):
    """Compute p(b|z) = Π_d Bern(b_d; p_d) with p from the mean of another decoder, which is frozen.

    Args:
        decoder: Trained on something else than b.
        dequantized: Whether it was trained on y = (k + u)/256, so that E[k/255] = (256 E[y] - ½)/255.
    """

    n_params: ClassVar[int] = 1

    def __init__(self, decoder: Conditional, *, dequantized: bool) -> None:
        super().__init__(decoder)
        self.requires_grad_(requires_grad=False)
        self.dequantized = dequantized

    def forward(self, c: Float[Tensor, "*batch context"]) -> IndependentBernoulli:
        """Return the distribution of b given z."""
        p = grey_level(self.network(c).mean, dequantized=self.dequantized)
        return IndependentBernoulli(torch.logit(p, eps=MARGIN))


def grey_level(mean: Tensor, *, dequantized: bool) -> Tensor:
    """Return the mean of k/255 from the mean of what a decoder was trained on."""
    return (256 * mean - 0.5) / 255 if dequantized else mean


def is_dequantized(config: Config) -> bool:
    """Return whether a config's decoder is trained on y = (k + u)/256."""
    return config.model.likelihood.support is Support.UNIT_INTERVAL and config.data.dequantize


def is_binarised_model(config: Config) -> bool:
    """Return whether a config's model is trained on dynamically binarised images itself."""
    return config.model.likelihood.support is Support.BINARY and config.data.binarize == "dynamic"


def binarised_model(run: Run, vae: VAE, dataset: Dataset, callback: Callable[[int, int], None]) -> VAE:
    """Build a model of dynamically binarised images: the frozen decoder's mean, and a Gaussian encoder fitted to it.

    The encoder is kept in the run, under the SHA-256 of the checkpoint that it belongs to.

    Args:
        run: The run.
        vae: Its trained model, on the device to work on; the decoder is frozen.
        dataset: Its images.
        callback: Is called with the steps done, and of how many.

    Raises:
        VaecliError: The encoder cannot be written.
    """
    config = run.config
    digest = hashlib.sha256(run.checkpoint_path.read_bytes()).hexdigest()[:16]
    kept = run.path / "evaluations" / f"binarised-encoder-{digest}.pt"
    encoder = build_vae(config.model, run.checkpoint.image_shape, generator(config.seed, "init")).encoder
    decoder = BinarisedDecoder(vae.decoder, dequantized=is_dequantized(config))
    model = VAE(encoder, decoder, vae.prior).to(vae.device)
    try:
        encoder.load_state_dict(torch.load(kept, map_location=vae.device, weights_only=True))
    except Exception:  # noqa: BLE001 (there is none, or none that can be used)
        fit_encoder(model, dataset.train, dataset.validation, config.seed, callback)
        try:
            kept.parent.mkdir(exist_ok=True)
            write_atomically(kept, partial(torch.save, encoder.state_dict()))
        except OSError as error:
            raise VaecliError(f"{kept}: cannot be written: {error.strerror}") from error
    return model


def fit_encoder(model: VAE, train: Images, held_out: Images, seed: int, callback: Callable[[int, int], None]) -> None:
    """Fit a model's encoder, and nothing else of it, to dynamically binarised images.

    Args:
        model: A model of binary images; its encoder is changed in place.
        train: Images to fit it on.
        held_out: Images whose ELBO says when to stop; if there are none, the last epoch's encoder is taken.
        seed: Of the order of the images and of all random numbers.
        callback: Is called with the steps done, and of how many.

    Raises:
        VaecliError: The encoder's parameters did not stay finite.
    """
    device, encoder = model.device, model.encoder
    pixels, held_out_pixels = train.pixels.to(device), held_out.pixels.to(device)
    optimizer = build_optimizer(OPTIMIZER, encoder.parameters())
    order, stream = generator(seed, "refit"), generator(seed, "refit", device)
    steps = EPOCHS * -(-len(train) // BATCH_SIZE)
    step, best, best_epoch, weights = 0, float("-inf"), 0, encoder.state_dict()
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(train), generator=order).to(device).split(BATCH_SIZE):
            batch = binarize_dynamically(pixels[rows], stream)
            value, _ = loss(estimator_b, model, batch, draw_noise(model, batch, 1, stream))
            optimizer.zero_grad()
            value.backward()
            optimizer.step(learning_rate(OPTIMIZER, step, steps))
            step += 1
            callback(step, steps)
        if len(held_out):
            bound = evaluate_bound(model, held_out_pixels, binarize_dynamically, seed).elbo
        else:
            bound = float(epoch)
        if bound > best:
            best, best_epoch = bound, epoch
            weights = {name: value.clone() for name, value in encoder.state_dict().items()}
        elif epoch - best_epoch >= PATIENCE:
            break
    encoder.load_state_dict(weights)
    if not all(parameter.isfinite().all() for parameter in encoder.parameters()):
        raise VaecliError("fitting an encoder to binary images diverged")
    callback(steps, steps)

"""The bridge between supports: every decoder with a mean in the unit interval is a model of binarised images.

If b_d ~ Bern(x_d) given x, then p(b|z) = Π_d Bern(b_d; E[x_d|z]): exact, and through the decoder's mean alone. The
proposal matters as much as the decoder: a posterior fitted to grey levels is far too narrow for binary images, so the
encoder is fitted anew to b with the decoder frozen.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from vaecli.config.likelihoods import Support
from vaecli.config.schema import Config
from vaecli.data.dataset import Dataset, Images
from vaecli.data.observations import binarize_dynamically
from vaecli.errors import VaecliError
from vaecli.files import write_atomically
from vaecli.model.conditionals import Conditional
from vaecli.model.distributions import IndependentBernoulli
from vaecli.model.objectives import elbo
from vaecli.model.vae import VAE, build_vae
from vaecli.model.validation import evaluate_bound
from vaecli.randomness import generator
from vaecli.runs.run import Run
from vaecli.training.optimizers import Adam

MARGIN = 1e-3
"""Probabilities are kept this far from 0 and 1; from 1e-7 to 1e-3 it changes the result by less than a nat."""
EPOCHS, PATIENCE = 10, 2
BATCH_SIZE = 100
LEARNING_RATE = 2e-3
"""The one budget of every refitted encoder: Adam on half a cosine, stopped by the validation ELBO."""


@final
class BinarisedDecoder(Conditional):
    """p(b|z) = Π_d Bern(b_d; p_d) with p from the mean of another decoder, which is frozen.

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
        """The distribution of b given z."""
        p = grey_level(self.network(c).mean, dequantized=self.dequantized)
        return IndependentBernoulli(torch.logit(p, eps=MARGIN))


def grey_level(mean: Tensor, *, dequantized: bool) -> Tensor:
    """The mean of k/255 from the mean of what a decoder was trained on."""
    return (256 * mean - 0.5) / 255 if dequantized else mean


def is_dequantized(config: Config) -> bool:
    """Whether a config's decoder is trained on y = (k + u)/256."""
    return config.model.likelihood.support is Support.UNIT_INTERVAL and config.data.dequantize


def is_model_of_b(config: Config) -> bool:
    """Whether a config's model is trained on dynamically binarised images itself."""
    return config.model.likelihood.support is Support.BINARY and config.data.binarize == "dynamic"


def model_of_b(run: Run, vae: VAE, dataset: Dataset, report: Callable[[int, int], None]) -> VAE:
    """A model of dynamically binarised images: the frozen decoder's mean, and a Gaussian encoder fitted to it.

    The encoder is kept in the run, under the SHA-256 of the checkpoint that it belongs to.

    Args:
        run: The run.
        vae: Its trained model, on the device to work on; the decoder is frozen.
        dataset: Its images.
        report: Is told the steps done, and of how many.

    Raises:
        VaecliError: The encoder cannot be written.
    """
    config = run.config
    digest = hashlib.sha256(run.checkpoint_path.read_bytes()).hexdigest()[:16]
    kept = run.path / "evaluations" / f"binarised-encoder-{digest}.pt"
    n_pixels = math.prod(run.checkpoint.image_shape)
    encoder = build_vae(config.model, n_pixels, generator(config.seed, "init")).encoder
    decoder = BinarisedDecoder(vae.decoder, dequantized=is_dequantized(config))
    model = VAE(encoder, decoder, vae.latent_dim).to(vae.device)
    try:
        encoder.load_state_dict(torch.load(kept, map_location=vae.device, weights_only=True))
    except Exception:  # noqa: BLE001 (none is kept, or none that can be used)
        fit_encoder(model, dataset.train, dataset.validation, config.seed, report)
        try:
            kept.parent.mkdir(exist_ok=True)
            write_atomically(kept, partial(torch.save, encoder.state_dict()))
        except OSError as error:
            raise VaecliError(f"{kept}: cannot be written: {error.strerror}") from error
    return model


def fit_encoder(model: VAE, train: Images, held_out: Images, seed: int, report: Callable[[int, int], None]) -> None:
    """Fit a model's encoder, and nothing else of it, to dynamically binarised images.

    Args:
        model: A model of binary images; its encoder is changed in place.
        train: Images to fit it on.
        held_out: Images whose ELBO says when to stop; if there are none, the last epoch's encoder is taken.
        seed: Of the order of the images and of all noise.
        report: Is told the steps done, and of how many.

    Raises:
        VaecliError: The encoder's parameters did not stay finite.
    """
    device, encoder = model.device, model.encoder
    pixels, held_out_pixels = train.pixels.to(device), held_out.pixels.to(device)
    optimizer = Adam(encoder.parameters())
    order, noise = generator(seed, "refit"), generator(seed, "refit", device)
    steps = EPOCHS * -(-len(train) // BATCH_SIZE)
    step, best, best_epoch, weights = 0, -math.inf, 0, encoder.state_dict()
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(train), generator=order).to(device).split(BATCH_SIZE):
            batch = binarize_dynamically(pixels[rows], noise)
            loss = -elbo(model, batch, 1, noise).value.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps)))
            step += 1
            report(step, steps)
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
    report(steps, steps)

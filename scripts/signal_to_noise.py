"""Draw how much of the encoder's gradient is signal: `python scripts/signal_to_noise.py OUT.svg RUN...`.

For each run and number of samples L, |E g|/√Var g of the gradient g of 20 training images, by 200 draws of ε with the
images fixed, averaged over the encoder's parameters (Rainforth et al. 2018, arXiv 1802.04537, section 3).
"""

import sys

import torch
from matplotlib.figure import Figure

from vaecli.config.sections import ObjectiveConfig
from vaecli.data.dataset import Dataset
from vaecli.data.preprocess import Batch, build_preprocess
from vaecli.model.objectives import build_objective, draw_noise, loss
from vaecli.model.vae import VAE
from vaecli.randomness import generator
from vaecli.runs.run import Run, load_run

SAMPLES = (1, 3, 10, 30, 100)
IMAGES, DRAWS = 20, 200


def signal_to_noise(vae: VAE, batch: Batch, name: str, n_samples: int) -> float:
    """Return |E g|/√Var g, averaged over those parameters of the encoder whose gradient varies."""
    objective = build_objective(ObjectiveConfig.model_validate({"name": name}))
    parameters, stream = list(vae.encoder.parameters()), generator(0, "epsilon")
    first, second = (torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64) for _ in range(2))
    for _ in range(DRAWS):
        value, _ = loss(objective, vae, batch, draw_noise(vae, batch, n_samples, stream))
        g = torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters)]).double()
        first += g / DRAWS
        second += g.square() / DRAWS
    spread = (second - first.square()).clamp(min=0).sqrt()
    varies = spread > 1e-6 * first.abs().max()
    return (first.abs() / spread)[varies].mean().item()


def minibatch(run: Run) -> Batch:
    """Return some training images as the run's encoder sees them."""
    support = run.config.support
    images = Dataset(run.config.data, support).train.spread(IMAGES)
    return build_preprocess(support, run.config.data)(images.pixels, generator(0, "pixels"))


def main(out: str, *names: str) -> None:
    """Measure every run, print the numbers, and draw them."""
    figure = Figure(figsize=(3.6 * len(names), 2.8), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axis, name in zip(axes, names, strict=True):
        run = load_run(name)
        vae, batch = run.vae, minibatch(run)
        for objective in ("iwae", "dreg"):
            found = [signal_to_noise(vae, batch, objective, n) for n in SAMPLES]
            print(run.name, objective, *(f"{value:.3f}" for value in found))
            axis.semilogx(SAMPLES, found, marker="o", label=objective)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("samples L")
        epochs = run.config.training.epochs
        axis.set_title(f"{epochs} epoch{'s' if epochs > 1 else ''}")
    axes[0].set_ylabel("signal-to-noise of the\nencoder's gradient")
    axes[0].legend()
    figure.savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

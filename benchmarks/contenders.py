"""Programs that train the same VAE: each prepares itself, then does one epoch of the same work for every `next`.

The work: N images of 784 grey levels, binarised anew for each minibatch of M (pythae and the DataLoader example take
them grey), q(z|x) and p(x|z) with one hidden layer of H units, Z latent dimensions, L samples, Bernoulli, Adam.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

PIXELS = 784
EPOCHS_OF_PICTURES = 5


@dataclass(frozen=True)
class Work:
    """What an epoch consists of."""

    n: int = 60_000
    hidden: int = 500
    latent: int = 20
    batch: int = 100
    samples: int = 1
    decoder: str = "bernoulli"
    device: str = "cpu"

    @property
    def steps(self) -> int:
        """Minibatches in an epoch."""
        return -(-self.n // self.batch)


Epochs = Iterator[None]


def images(n: int) -> np.ndarray:
    """Return the first n training images of MNIST, repeated where that is not enough: (n, 784) uint8."""
    from vaecli.data.sources import load_mnist

    pixels = load_mnist("train").pixels.reshape(-1, PIXELS)
    return np.resize(pixels, (n, PIXELS))


def multiply_adds(work: Work) -> int:
    """Count the multiplications, each with an addition, in the eleven matrix products of a step."""
    layers = PIXELS * work.hidden, work.hidden * 2 * work.latent
    decoder = work.latent * work.hidden, work.hidden * PIXELS
    return 3 * work.batch * (sum(layers) + work.samples * sum(decoder)) - work.batch * layers[0]


def _matrices(work: Work, library: str) -> tuple[list[Any], Callable[[], list[Any]]]:
    """Return the parameters' gradients, and the eleven matrix products of a step, by torch's library or by oneDNN."""
    import torch

    h, z, rows = work.hidden, work.latent, work.batch * work.samples

    def new(*shape: int) -> Any:
        return torch.randn(*shape, device=work.device) / shape[-1] ** 0.5

    x, w1, w2, w3, w4 = new(work.batch, PIXELS), new(h, PIXELS), new(2 * z, h), new(h, z), new(PIXELS, h)
    h1, q, latent, h2, y = new(work.batch, h), new(work.batch, 2 * z), new(rows, z), new(rows, h), new(rows, PIXELS)
    g1, g2, g3, g4 = (torch.empty_like(w) for w in (w1, w2, w3, w4))
    dh1, dlatent, dh2 = torch.empty_like(h1), torch.empty_like(latent), torch.empty_like(h2)
    outs = [h1, q, h2, y, g4, dh2, g3, dlatent, g2, dh1, g1]
    factors = [
        (x, w1.T), (h1, w2.T), (latent, w3.T), (h2, w4.T), (y.T, h2), (y, w4),
        (dh2.T, latent), (dh2, w3), (q.T, h1), (q, w2), (dh1.T, x),
    ]  # fmt: skip

    def by_torch() -> list[Any]:
        return [torch.mm(*pair, out=out) for pair, out in zip(factors, outs, strict=True)]

    def by_onednn() -> list[Any]:
        return [torch.ops.vaecli.linear(one, other.T, None) for one, other in factors]

    return [g1, g2, g3, g4], torch.no_grad()(by_onednn if library == "onednn" else by_torch)


def libraries(work: Work) -> list[str]:
    """Return the libraries that can make the products there."""
    import torch

    from vaecli.products import has_onednn

    return ["torch", *(["onednn"] if has_onednn(torch.device(work.device)) else [])]


def faster_library(work: Work) -> str:
    """Return the library that makes the products of a step in less time, by a measurement."""

    def seconds(library: str) -> float:
        _, products = _matrices(work, library)
        times = []
        for _ in range(60):
            began = time.perf_counter()
            products()
            _wait(work)
            times.append(time.perf_counter() - began)
        return sorted(times[10:])[25]

    return min(libraries(work), key=seconds)


def floor(work: Work, library: str) -> Epochs:
    """Make the bare matrix products of the steps; their results are not used."""
    import torch

    torch.set_flush_denormal(True)
    if library not in libraries(work):
        raise ImportError("not in this torch", name=library)
    _, products = _matrices(work, library)
    while True:
        for _ in range(work.steps):
            _kept = products()  # or the system would take the memory back, and give it again page by page
        _wait(work)
        yield


def floor_adam(work: Work) -> Epochs:
    """Make them by the faster library, and one bare fused Adam sweep over the parameters for each step."""
    import torch

    from vaecli.training.optimizers import Adam

    torch.set_flush_denormal(True)
    gradients, products = _matrices(work, faster_library(work))
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    adam = Adam(parameters)
    while True:
        for _ in range(work.steps):
            _kept = products()
            adam.step(1e-3)
        _wait(work)
        yield


def vaecli(work: Work, compiled: str = "off", products: str = "auto") -> Epochs:
    """`vae train`, with everything it writes: the loop pauses where it reports the end of an epoch.

    On CUDA it replays recorded steps.
    It begins to count after the first epochs, each of which logs pictures; from then on every fifth does.
    """
    import threading

    from vaecli.config.loading import load_config
    from vaecli.training.loop import train

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    def callback(update: Any) -> None:
        if update.ended:
            done.release()
            go.acquire()

    with TemporaryDirectory() as directory:
        np.save(f"{directory}/images.npy", images(work.n).reshape(-1, 28, 28))
        config = load_config(
            None,
            [
                f"data.name={directory}/images.npy", "data.test=0", "data.validation=0",
                f"model.decoder={work.decoder}", f"model.hidden_dim={work.hidden}",
                f"model.latent_dim={work.latent}", f"objective.L={work.samples}",
                f"training.batch_size={work.batch}", "training.epochs=1000", f"device={work.device}",
                f"training.cuda_graph={str(work.device.startswith('cuda')).lower()}", f"training.compile={compiled}",
                f"training.products={products}",
            ],
        )  # fmt: skip

        def run() -> None:
            go.acquire()
            train(config, runs_dir=Path(directory), callback=callback)

        threading.Thread(target=run, daemon=True).start()
        for epoch in itertools.count(1):
            go.release()
            done.acquire()
            if epoch > EPOCHS_OF_PICTURES:
                yield


def importance_floor(work: Work) -> Epochs:
    """Make the decoder's two matrix products for L samples of each of N images, a thousand rows at a time."""
    import torch

    torch.set_flush_denormal(True)
    z, w3, b3 = torch.randn(1000, work.latent), torch.randn(work.hidden, work.latent), torch.zeros(work.hidden)
    w4, b4 = torch.randn(PIXELS, work.hidden) / work.hidden, torch.zeros(PIXELS)
    linear = torch.ops.vaecli.linear if faster_library(work) == "onednn" else torch.nn.functional.linear
    while True:
        with torch.no_grad():
            for _ in range(work.n * work.samples // 1000):
                linear(linear(z, w3, b3), w4, b4)
        yield


def importance(work: Work) -> Epochs:
    """Weigh L samples for each of N images, as `vae evaluate --proposal encoder --k L` does."""
    import torch

    from vaecli.config.sections import ModelConfig
    from vaecli.data.image_grid import ImageShape
    from vaecli.data.preprocess import binarize_dynamically
    from vaecli.devices import choose_library, flush_subnormals
    from vaecli.model.estimators import LogJoint, importance_weighted
    from vaecli.model.proposals import encoder_proposal
    from vaecli.model.vae import build_vae
    from vaecli.products import use_library
    from vaecli.randomness import generator

    flush_subnormals()
    model = ModelConfig(decoder=work.decoder, hidden_dim=(work.hidden,), latent_dim=work.latent)
    vae = build_vae(model, ImageShape(1, 1, PIXELS), generator(0, "init")).requires_grad_(requires_grad=False)
    use_library(vae, choose_library("auto", torch.device("cpu")))
    noise = generator(0, "importance")
    batch = binarize_dynamically(torch.from_numpy(images(work.n)), noise)
    while True:
        for x in batch.input.split(1):
            log_joint = LogJoint(vae, x, 1000)
            importance_weighted(log_joint, encoder_proposal(vae, type(batch)(x, x)), work.samples, noise)
        yield


def jax(work: Work) -> Epochs:
    """JAX: a whole epoch in one jitted scan, parameters and images on the device."""
    import jax as _jax
    import jax.numpy as jnp
    from jax import lax, random

    def layer(key: Any, n_in: int, n_out: int) -> dict[str, Any]:
        bound = n_in**-0.5
        w, b = random.split(key)
        return {
            "w": random.uniform(w, (n_in, n_out), minval=-bound, maxval=bound),
            "b": random.uniform(b, (n_out,), minval=-bound, maxval=bound),
        }

    sizes = ((PIXELS, work.hidden), (work.hidden, 2 * work.latent), (work.latent, work.hidden), (work.hidden, PIXELS))
    parameters = [layer(key, *size) for key, size in zip(random.split(random.key(0), 4), sizes, strict=True)]
    pixels = jnp.asarray(images(work.n))

    def loss(p: list[dict[str, Any]], x: Any, key: Any) -> Any:
        h = _jax.nn.relu(x @ p[0]["w"] + p[0]["b"])
        mean, log_var = jnp.split(h @ p[1]["w"] + p[1]["b"], 2, axis=-1)
        epsilon = random.normal(key, (work.samples, *mean.shape))
        z = mean + jnp.exp(0.5 * log_var) * epsilon
        logits = _jax.nn.relu(z @ p[2]["w"] + p[2]["b"]) @ p[3]["w"] + p[3]["b"]
        log_likelihood = (x * logits - _jax.nn.softplus(logits)).sum(-1).mean(0)
        kl = 0.5 * (mean**2 + jnp.exp(log_var) - 1 - log_var).sum(-1)
        return -(log_likelihood - kl).mean()

    def step(carry: Any, rows: Any) -> Any:
        p, m, v, t, key = carry
        key, k_epsilon, k_pixels = random.split(key, 3)
        grey = pixels[rows]
        x = (random.randint(k_pixels, grey.shape, 0, 255, dtype=jnp.uint8) < grey).astype(jnp.float32)
        value, g = _jax.value_and_grad(loss)(p, x, k_epsilon)
        m = _jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        v = _jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b * b, v, g)
        scale = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        p = _jax.tree.map(lambda a, b, c: a - scale * b / (jnp.sqrt(c) + 1e-8), p, m, v)
        return (p, m, v, t + 1, key), value

    @_jax.jit
    def epoch(carry: Any) -> Any:
        p, m, v, t, key = carry
        key, shuffle = random.split(key)
        order = random.permutation(shuffle, work.n)[: work.steps * work.batch].reshape(work.steps, work.batch)
        return lax.scan(step, (p, m, v, t, key), order)

    zeros = _jax.tree.map(jnp.zeros_like, parameters)
    carry = (parameters, zeros, zeros, 1.0, random.key(1))
    while True:
        carry, values = epoch(carry)
        values.block_until_ready()
        yield


def pythae(work: Work) -> Epochs:
    """pythae's VAE with its own trainer, an epoch at a time."""
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from torch import nn

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Sequential(nn.Linear(PIXELS, work.hidden), nn.ReLU())
            self.mean, self.log_var = nn.Linear(work.hidden, work.latent), nn.Linear(work.hidden, work.latent)

        def forward(self, x: Any) -> Any:
            h = self.hidden(x.flatten(1))
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            layers = nn.Linear(work.latent, work.hidden), nn.ReLU(), nn.Linear(work.hidden, PIXELS), nn.Sigmoid()
            self.layers = nn.Sequential(*layers)

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=self.layers(z).reshape(-1, 1, 28, 28))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=work.latent, reconstruction_loss="bce")
    x = torch.from_numpy(images(work.n)).reshape(-1, 1, 28, 28) / 255
    with TemporaryDirectory() as directory:
        settings = BaseTrainerConfig(
            output_dir=directory, num_epochs=1000, learning_rate=1e-3, per_device_train_batch_size=work.batch,
            no_cuda=work.device == "cpu",
        )  # fmt: skip
        data = BaseDataset(x, torch.zeros(work.n))
        trainer = BaseTrainer(VAE(config, Encoder(), Decoder()), data, None, settings)
        trainer.prepare_training()
        epoch = 0
        while True:
            epoch += 1
            trainer.train_step(epoch)
            _wait(work)
            yield


def dataloader(work: Work) -> Epochs:
    """Run the loop of the usual PyTorch example: a Dataset that makes a PIL image of each item, ToTensor, `.item()`."""
    import torch
    from PIL import Image
    from torch import nn
    from torch.nn import functional
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import ToTensor

    pixels = torch.from_numpy(images(work.n)).reshape(-1, 28, 28)

    class Mnist(Dataset[Any]):
        def __init__(self) -> None:
            self.transform = ToTensor()

        def __len__(self) -> int:
            return work.n

        def __getitem__(self, i: int) -> tuple[Any, int]:
            return self.transform(Image.fromarray(pixels[i].numpy(), mode="L")), 0

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc21 = nn.Linear(PIXELS, work.hidden), nn.Linear(work.hidden, work.latent)
            self.fc22, self.fc3 = nn.Linear(work.hidden, work.latent), nn.Linear(work.latent, work.hidden)
            self.fc4 = nn.Linear(work.hidden, PIXELS)

        def forward(self, x: Any) -> Any:
            h = functional.relu(self.fc1(x))
            mean, log_var = self.fc21(h), self.fc22(h)
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
            return torch.sigmoid(self.fc4(functional.relu(self.fc3(z)))), mean, log_var

    model = Model().to(work.device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(Mnist(), batch_size=work.batch, shuffle=True)
    while True:
        total = 0.0
        for data, _ in loader:
            x = data.to(work.device).flatten(1)
            adam.zero_grad()
            y, mean, log_var = model(x)
            bce = functional.binary_cross_entropy(y, x, reduction="sum")
            loss = bce - 0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
            loss.backward()
            total += loss.item()
            adam.step()
        yield


def _wait(work: Work) -> None:
    if work.device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


BEFORE = "vaecli, no oneDNN"
"""Steps that are not compiled, with torch's own products, as of version 0.1."""
PEERS = (
    "floor, torch", "floor, oneDNN", "floor + Adam",
    "JAX scan", "vaecli", "vaecli, eager", BEFORE, "pythae", "DataLoader",
)  # fmt: skip
CONTENDERS: dict[str, Callable[[Work], Epochs]] = {
    "floor, torch": partial(floor, library="torch"),
    "floor, oneDNN": partial(floor, library="onednn"),
    "floor + Adam": floor_adam,
    "vaecli": partial(vaecli, compiled="on"),
    "vaecli, eager": vaecli,
    BEFORE: partial(vaecli, products="torch"),
    "JAX scan": jax,
    "pythae": pythae,
    "DataLoader": dataloader,
    "importance floor": importance_floor,
    "importance": importance,
}

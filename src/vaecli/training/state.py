"""The state of training: everything that, saved and restored, makes the rest of a run the same to the last bit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from vaecli.config.schema import Config
from vaecli.data.dataset import Images
from vaecli.data.minibatches import MinibatchRows, gather
from vaecli.data.preprocess import Preprocess
from vaecli.devices import DEFAULTS, PRODUCTS, STEPS, conditions
from vaecli.errors import UsageError, VaecliError
from vaecli.model.objectives import Algorithm, Drawn, Streams, draw_noise, kl_weight, n_samples
from vaecli.model.vae import VAE
from vaecli.products import Library, has_onednn, use_library
from vaecli.runs.checkpoint import Checkpoint, Progress
from vaecli.stages import StageCallback, silent, wait_for
from vaecli.training.optimizers import Optimizer, learning_rate

STEPS_PER_LAUNCH = 25
"""Steps in a CUDA graph."""
STEP = "step"
"""The name under which a checkpoint has the number of steps beside the moments of each parameter, as torch does."""
TrainingStream = Literal["permutation", "epsilon", "pixels"]


class Minibatch(NamedTuple):
    """Hold what one step depends on, beside the state that it changes."""

    pixels: Shaped[Tensor, "M D"]
    kl_weight: float | Float[Tensor, ""]
    learning_rate: float | Float[Tensor, ""]


Chunk = Sequence[Minibatch]
"""The minibatches of one or several steps."""


@dataclass
class TrainingState:
    """Hold what changes while training, and what that depends on."""

    config: Config
    images: Images
    """The training images, on the device where they fit into its memory."""
    preprocess: Preprocess
    """How pixels become x."""
    vae: VAE
    algorithm: Algorithm
    """How the parameters learn."""
    optimizer: Optimizer
    generators: dict[TrainingStream, torch.Generator]
    progress: Progress
    permutation: Tensor | None
    trace: Tensor
    """Loss, log-likelihood and KL of each step of the epoch, on the device, so that no step waits for their values."""
    data_sha256: str
    replicates: int = 1
    """How many states, with this one, are trained as one batched program."""
    compiled: bool = False
    """Whether the gradient is compiled: decided when the run begins, and kept when it is resumed."""
    library: Library = "torch"
    """What makes the matrix products; decided and kept likewise."""

    def __post_init__(self) -> None:
        use_library(self.vae, self.library)

    @property
    def batch_size(self) -> int:
        """Return M, the size of every minibatch but the last of an epoch."""
        return min(self.config.training.batch_size, len(self.images))

    @property
    def steps_per_epoch(self) -> int:
        """Return ⌈N/M⌉."""
        return len(self.trace)

    @property
    def updates(self) -> int:
        """Return how often the parameters have been moved: once a step, unless the algorithm has it otherwise."""
        return self.progress.step * self.algorithm.updates

    @property
    def n_samples(self) -> int:
        """Return how many samples of z the next step draws for every image."""
        return n_samples(self.config.objective, self.progress.step, self.steps_per_epoch)

    @property
    def uses_cuda_graph(self) -> bool:
        """Return whether steps are replayed: if asked for, where parameters and images lie on a CUDA device."""
        on_cuda = self.vae.device.type == "cuda" and self.images.pixels.device.type == "cuda"
        asks_which_images = bool(self.algorithm.memory) or self.preprocess.n_classes > 0
        return self.config.training.cuda_graph and on_cuda and not asks_which_images

    @property
    def chunk_size(self) -> int:
        """Return how many steps are made at a time."""
        n_full = len(self.images) // self.batch_size
        return min(STEPS_PER_LAUNCH, n_full) if self.uses_cuda_graph else 1

    def chunks(self) -> Iterator[Chunk]:
        """Yield the minibatches that are left of the epoch, a chunk at a time.

        Each chunk is to be counted before the next is asked for. The first one ends at a multiple of the chunk's size,
        and the last of the epoch may have fewer.
        """
        config, size, pixels = self.config, self.chunk_size, self.minibatches()
        n_steps = config.training.epochs * self.steps_per_epoch
        while batches := list(islice(pixels, size - self.progress.position % size)):
            yield [
                Minibatch(
                    batch,
                    kl_weight(config.objective, step, self.steps_per_epoch),
                    learning_rate(config.optimizer, step, n_steps),
                )
                for step, batch in enumerate(batches, self.progress.step)
            ]

    def minibatches(self) -> Iterator[Tensor]:
        """Yield the pixels of each minibatch that is left of the epoch, (M, D), on the device."""
        return gather(self.images.pixels, self.rows(), self.vae.device)

    def rows(self) -> Sequence[Tensor]:
        """Return which images make each minibatch that is left of the epoch; draw its permutation if it begins."""
        self.begin_epoch()
        assert self.permutation is not None
        permutation = self.permutation.to(self.images.pixels.device)
        return MinibatchRows(permutation, self.config.training.batch_size, self.progress.position)

    def begin_epoch(self, on_stage: StageCallback = silent) -> None:
        """Draw the epoch's permutation, if it is not drawn yet; what `on_stage` raises leaves the state as it is."""
        if self.permutation is None:
            stream, n = torch.Generator(), len(self.images)
            stream.set_state(self.generators["permutation"].get_state())
            self.permutation = wait_for(
                f"drawing the order of {n:,} images", lambda: torch.randperm(n, generator=stream), on_stage
            )
            self.generators["permutation"].set_state(stream.get_state())

    def labels(self) -> Int64[Tensor, " M"] | None:
        """Return the labels of the next minibatch, where the model is told them."""
        known = self.images.labels if self.preprocess.n_classes else None
        if known is None:
            return None
        self.begin_epoch()
        assert self.permutation is not None
        return known[MinibatchRows(self.permutation, self.config.training.batch_size, self.progress.position)[0]]

    def draw(self, pixels: Shaped[Tensor, "M D"]) -> Drawn:
        """Draw what a step needs from the state's own streams: x from the pixels, ε, and what the algorithm adds."""
        streams = Streams(self.generators["epsilon"], self.generators["pixels"])
        batch = self.preprocess(pixels, streams.pixels, self.labels())
        epsilon = draw_noise(self.vae, batch, self.n_samples, streams.epsilon)
        return *batch, epsilon, *self.algorithm.draw(self.vae, batch, epsilon, streams, lambda: self.rows()[0])

    def count(self, chunk: Chunk, terms: Float[Tensor, "n 3"]) -> None:
        """Count the steps of a chunk, and keep their loss, log-likelihood and KL."""
        progress = self.progress
        self.trace[progress.position : progress.position + len(chunk)] = terms
        progress.learning_rate = float(chunk[-1].learning_rate)
        progress.position += len(chunk)
        progress.step += len(chunk)
        progress.images += sum(len(minibatch.pixels) for minibatch in chunk)

    def end_epoch(self) -> None:
        """Complete the epoch, whose steps have all been made."""
        self.permutation = None
        self.progress.epoch += 1
        self.progress.position = 0

    def leave_group(self) -> None:
        """Copy the parameters and buffers, where they are views of those of several states."""
        for tensor in (*self.vae.parameters(), *self.vae.buffers()):
            tensor.data = tensor.data.clone()

    def conditions(self, replicates: int) -> dict[str, str]:
        """Return what, besides the config and the number of threads, decides the bits of so many states together."""
        return conditions(self.vae.device, replicates, compiled=self.compiled, library=self.library)

    def capture(self, log_lengths: Mapping[str, int]) -> Checkpoint:
        """Copy the state into a checkpoint, with the byte lengths of the append-only logs."""
        return Checkpoint(
            config=self.config,
            image_shape=self.images.shape,
            model=_on_cpu(self.vae.state_dict()),
            optimizer={
                i: {STEP: torch.tensor(float(self.updates)), **_on_cpu(moments)}
                for i, moments in self.optimizer.state_dict().items()
            },
            progress=replace(self.progress),
            generators={name: stream.get_state() for name, stream in self.generators.items()},
            permutation=None if self.permutation is None else self.permutation.clone(),
            trace=self.trace.cpu().clone(),
            algorithm=_on_cpu(self.algorithm.memory),
            threads=torch.get_num_threads(),
            conditions=self.conditions(self.replicates),
            data_sha256=self.data_sha256,
            logs=dict(log_lengths),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Return to a captured state. Raises VaecliError where it does not fit."""
        if checkpoint.data_sha256 != self.data_sha256:
            raise VaecliError(f"{self.config.data.name}: is not the data that the run was trained on; it cannot go on")
        if any(s.get_state().numel() != checkpoint.generators[n].numel() for n, s in self.generators.items()):
            raise UsageError(
                f"the run was trained on another kind of device than {self.vae.device.type}, whose random numbers "
                "cannot be continued here; name that one with --device, or start a new run with --init-from"
            )
        self.load_weights(checkpoint)
        try:
            if checkpoint.optimizer or checkpoint.progress.step:  # before the first step there may be none
                moments = {
                    i: {name: moment for name, moment in of_one.items() if name != STEP}
                    for i, of_one in checkpoint.optimizer.items()
                }
                self.optimizer.load_state_dict(moments, checkpoint.progress.step * self.algorithm.updates)
            for name, stream in self.generators.items():
                stream.set_state(checkpoint.generators[name])
            self.trace.copy_(checkpoint.trace)
            for kept, tensor in self.algorithm.memory.items():
                tensor.copy_(checkpoint.algorithm[kept].view(tensor.shape))  # copying alone would broadcast
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise VaecliError(f"the checkpoint's training state does not fit its config: {error}") from error
        before = DEFAULTS | checkpoint.conditions
        self.compiled = before[STEPS] == "compiled"
        self.library = "onednn" if before[PRODUCTS] == "onednn" and has_onednn(self.vae.device) else "torch"
        use_library(self.vae, self.library)
        vars(self.progress).update(vars(checkpoint.progress))  # in place: others hold on to it
        self.permutation = checkpoint.permutation

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's weights and nothing else. Raises VaecliError where they do not fit."""
        try:
            self.vae.load_state_dict(checkpoint.model)
        except RuntimeError as error:
            raise VaecliError("the checkpoint's weights do not fit this config") from error


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy every tensor to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

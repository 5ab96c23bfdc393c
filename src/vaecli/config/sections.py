"""The sections of a config, as frozen models of their YAML. Every field has a default."""

from typing import Any, Literal

from pydantic import Field, field_validator

from vaecli.config.data_sets import DataSet
from vaecli.config.fields import Channels, Layers, Section, Size, Switch
from vaecli.config.likelihoods import LIKELIHOODS, Decoder, Likelihood

FLOWS = "flow", "iaf"
"""The posteriors that have no formula for their moments and their KL."""
CHANNELS = 32, 64
"""Of convolutions, unless they are given."""


class DataConfig(Section):
    """Describe which images are used, and how their pixels k in 0..255 become x; or which real vectors."""

    name: DataSet = "mnist"
    """A shipped or torchvision data set, or the path of an array: .npy, .npz (in grey or in colour), or IDX (-ubyte,
    -ubyte.gz)."""
    kind: Literal["images", "vectors"] = "images"
    """vectors: the rows of an array (N, D) of real numbers, .npy or .npz, standardised by those that are trained on."""
    binarize: Literal["dynamic", "threshold", "static", "none"] = "dynamic"
    """Binary likelihoods only: b ~ Bern(k/255) drawn anew each time, b = [k > 127], b drawn once, or k/255 itself."""
    dequantize: bool = True
    """Density likelihoods only: y = (k + u)/256 with u ~ U[0, 1) drawn anew each time, or k/255."""
    shuffle: bool = False
    """Whether the images of an array, or of a data set's training split, are put into a random order before they are
    split, the same whatever the seed: for arrays that are sorted, or frames of a film."""
    train: int | None = Field(None, ge=1)
    """How many of the first images of the training split are trained on; null: all that are not held out."""
    validation: int | None = Field(None, ge=0)
    """How many of the last images of the training split are held out; null: 10000 of MNIST's, a sixth of any other."""
    test: int | None = Field(None, ge=0)
    """Own arrays only: how many of the last images are for testing; null: a tenth."""

    @field_validator("kind")
    @classmethod
    def _vectors_are_an_array(cls, value: str, info: Any) -> str:
        if value == "vectors" and not str(info.data.get("name", ".npy")).endswith((".npy", ".npz")):
            raise ValueError("Input should be 'images', unless data.name is a .npy or .npz file of real vectors")
        return value


class ModelConfig(Section):
    """Describe the networks of q(z|x) and p(x|z)."""

    decoder: Decoder = "bernoulli"
    """p(x|z): which distribution the pixels have."""
    latent_dim: Size = 20
    """Dimensions of z."""
    condition: Literal["none", "labels"] = "none"
    """labels: encoder and decoder are given the class of each image, p(x|z, y) and q(z|x, y)."""
    classes: Size = 10
    """condition: labels only: how many classes there are, numbered from 0."""
    network: Literal["mlp", "conv"] = "mlp"
    """mlp: a perceptron; conv: convolutions below one, each of which halves the sides of a picture."""
    hidden_dim: Layers = (500,)
    """Units of each hidden layer of the encoder; the decoder mirrors it. []: none, and both are linear."""
    channels: Channels | None = None
    """conv only: channels of each convolution of the encoder, mirrored by the decoder; null: 32 and 64."""
    activation: Literal["relu", "tanh", "gated"] = "relu"
    """gated: h = (Wx + b) ⊙ σ(Vx + c), twice the parameters (Dauphin et al. 2016, arXiv 1612.08083)."""
    normalization: Literal["none", "batch", "layer"] = "none"
    """Of each hidden layer before its activation: over the minibatch, or over the units of each image."""
    mean: Literal["sigmoid", "linear"] = "sigmoid"
    """Gaussian means: in the unit interval (the paper, appendix C.2), or anywhere (the tutorial)."""
    min_log_sigma: float | None = -7.0
    """The floor of a learned scale, as log sigma; null: none."""
    sigma: float | None = Field(None, gt=0, le=1e6)
    """The one scale of i-gaussian and of sigma-gaussian, in units of the 0..1 pixel, or of a vector's deviations; null:
    1 of the first, learned by the second."""
    posterior: Literal["diagonal", "full", "flow", "iaf"] = "diagonal"
    """q(z|x): a Gaussian of diagonal or of full covariance, or a diagonal one transformed by a flow of coupling
    layers, or by an inverse autoregressive one."""
    prior: Literal["standard", "mixture", "vamp", "flow"] = "standard"
    """N(0, I); a mixture of Gaussians, all learned; one of the encoder's posteriors of learned pseudo-inputs; or a
    mixture of Gaussians seen through a masked autoregressive flow, both learned."""
    prior_components: Size = 500
    """Parts of the mixture that a prior is or has; each of vamp's starts from a training image."""
    init: Literal["mean_image", "glorot", "torch", "paper", "normal"] = "mean_image"
    """torch: PyTorch's initialisation of a linear layer; mean_image: the same, with the decoder's mean started at the
    mean training image; glorot: there too, with weights by Glorot & Bengio 2010, for tanh, and biases of 0; paper:
    N(0, 0.01) for every parameter, 0.01 read as the variance; normal: 0.01 read as the standard deviation."""

    @field_validator("channels")
    @classmethod
    def _channels_are_convolutions(cls, value: tuple[int, ...] | None, info: Any) -> tuple[int, ...] | None:
        if value is not None and info.data.get("network") == "mlp":
            raise ValueError("Input should be null with network: mlp, which has hidden_dim only")
        return value

    @property
    def channels_of_layers(self) -> tuple[int, ...]:
        """Return the channels of each convolution."""
        return CHANNELS if self.channels is None else self.channels

    @field_validator("prior")
    @classmethod
    def _prior_goes_with_the_rest(cls, value: str, info: Any) -> str:
        if value == "vamp" and info.data.get("condition") == "labels":
            raise ValueError(
                "Input should be 'standard', 'mixture' or 'flow' with condition: labels, which pseudo-inputs have not"
            )
        if value == "vamp" and info.data.get("normalization") == "batch":
            raise ValueError(
                "Input should be 'standard', 'mixture' or 'flow' with normalization: batch, whose means are images'"
            )
        if value == "flow" and info.data.get("latent_dim") == 1:
            raise ValueError(
                "Input should be 'standard' or 'mixture': in one latent dimension a flow shifts and scales"
            )
        return value

    @field_validator("posterior")
    @classmethod
    def _flow_needs_dimensions(cls, value: str, info: Any) -> str:
        if value in FLOWS and info.data.get("latent_dim") == 1:
            raise ValueError("Input should be 'diagonal' or 'full': in one latent dimension a flow is a Gaussian")
        return value

    @property
    def n_classes(self) -> int:
        """Return of how many classes encoder and decoder are told which it is; 0 where they are not told."""
        return self.classes if self.condition == "labels" else 0

    @property
    def likelihood(self) -> Likelihood:
        """Return the decoder's entry in `LIKELIHOODS`."""
        return LIKELIHOODS[self.decoder]

    @property
    def fixes_scale(self) -> bool:
        """Return whether the decoder's scale is given by `sigma`."""
        return self.sigma is not None and "sigma" in self.likelihood.settings


class ObjectiveConfig(Section):
    """Describe the lower bound that is maximised."""

    name: Literal["elbo", "iwae", "stl", "dreg"] = "elbo"
    """iwae: the importance-weighted bound; stl, dreg: elbo and iwae with other gradients of the same expectation."""
    estimator: Literal["A", "B"] = "B"
    """SGVB estimator of the elbo: A samples the KL term, B has it in closed form."""
    L: int = Field(1, ge=1, le=100_000)
    """Reparametrisation samples per image."""
    L_warmup: int = Field(0, ge=0)
    """Epochs at the start with 1 sample instead of L, whose time is better spent at the end."""
    kl_weight: float = Field(1.0, ge=0, le=1e6)
    """What is optimised; what is reported as elbo always has weight 1."""
    kl_warmup: int = Field(0, ge=0)
    """Epochs over which the weight rises from 0 to kl_weight."""


class OptimizerConfig(Section):
    """Describe how the parameters follow the gradient of the bound."""

    name: Literal["adam", "adagrad"] = "adam"
    """How a gradient becomes a step."""
    learning_rate: float = Field(0.002, gt=0)
    """At the first step."""
    schedule: Literal["constant", "linear", "cosine", "burda"] = "cosine"
    """How the learning rate goes on: as it is; down to 0 at the end of the last epoch; or, as burda, in eight stages,
    each three times as long as the one before and 10^(1/7) slower (Burda et al. 2015)."""
    epsilon: float | None = Field(None, gt=0)
    """What is added to the root in the denominator of a step; null: 1e-8 for adam, 1e-10 for adagrad."""
    weight_decay: float = Field(0.0, ge=0)
    """Coefficient c of the penalty c/2 |θ|² on the mean loss; 1/N is MAP under a prior N(0, I) (the paper)."""


class TrainingConfig(Section):
    """Describe how long to train, in minibatches of which size, and how steps are made faster."""

    algorithm: Literal["aevb", "wake-sleep", "mcem"] = "aevb"
    """How the networks learn; wake-sleep: the decoder from images, the encoder from what the decoder makes up; mcem:
    the decoder from draws of its posterior, the encoder beside it from the same."""
    batch_size: int = Field(100, ge=1, le=1_000_000)
    """Images of a step."""
    epochs: int = Field(40, ge=1, le=10_000_000)
    """The most epochs to train."""
    patience: int | None = Field(None, ge=1)
    """Stop as converged after so many epochs without a better validation ELBO; null: never."""
    compile: Switch = "auto"
    """On the CPU: compile the gradient of the bound, which takes some ten seconds and a C++ compiler. auto: where at
    least 12,000 steps are to be made, and there is a compiler."""
    products: Literal["auto", "torch", "onednn"] = "auto"
    """On the CPU: what makes the matrix products, torch's own library or oneDNN. auto: oneDNN on AMD processors with
    AVX-512."""
    cuda_graph: bool = False
    """On CUDA: record some steps once and replay them, in one launch each time."""
    tf32: bool = False
    """On CUDA: matrix products with factors rounded to TF32."""

"""The explorer: one HTML file in which a run's encoder and decoder work in the browser, with nothing else."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from vaecli.config.likelihoods import Support
from vaecli.config.loading import dump_config
from vaecli.config.schema import Config
from vaecli.config.sections import FLOWS
from vaecli.data.dataset import Dataset, Images, Split
from vaecli.data.preprocess import Batch, build_preprocess
from vaecli.errors import UsageError, VaecliError
from vaecli.evaluation.result import Evaluation, read_evaluation
from vaecli.files import finite, write_text
from vaecli.model.bound import ACTIVE
from vaecli.model.distributions import Posterior
from vaecli.model.estimators import expected_terms
from vaecli.model.objectives import Elbo
from vaecli.model.vae import kl_per_dimension
from vaecli.randomness import generator
from vaecli.reports.in_browser import Arrays, Precision, choose_precision, describe_model
from vaecli.runs.run import Run

MAX_IMAGES, MAX_BYTES = 2000, 4_000_000
"""Test images on the map at most, and their bytes."""
DRAWS = 16
"""Draws from q(z|x) by which the bound of each image is estimated, in the page as well."""
ROWS = 1000
"""Samples decoded at a time."""
SCRIPTS = ("arrays", "layers", "distributions", "model", "state", "pixels", "strokes", "chart", "plane", "landscape",
           "choices", "map", "decoded", "sliders", "drawing", "run", "main")  # fmt: skip
"""The modules of the page, each after those that it imports from."""
CENTRED = "mnist"
"""The data set whose images are centred by their mass, in a box: what is drawn for it is so as well."""


@dataclass(frozen=True)
class Shown:
    """Hold what the page shows of a run: its model and some images as the model takes them."""

    run: Run
    images: Images
    split: Split

    @cached_property
    def batch(self) -> Batch:
        """Return the images by evaluation's own random numbers, the same every time."""
        preprocess = build_preprocess(self.config.support, self.config.data)
        return preprocess(self.images.pixels, generator(self.config.seed, "evaluation"))

    @property
    def config(self) -> Config:
        """Return the run's config."""
        return self.run.config

    @cached_property
    def posterior(self) -> Posterior:
        """Return q(z|x) of every image."""
        posterior = self.run.vae.encoder(self.batch.input)
        assert isinstance(posterior, Posterior)
        return posterior

    @cached_property
    def bound(self) -> Elbo:
        """Return the two terms of every image's ELBO, in nats."""
        return expected_terms(self.run.vae, self.batch, DRAWS, generator(self.config.seed, "epsilon"), ROWS)


@torch.no_grad()
def explore(run: Run, out: Path | None = None, *, split: Split = "test", data_dir: Path | None = None) -> Path:
    """Write one HTML file in which a run's decoder and encoder work in the browser.

    It takes nothing from the network. Up to 2,000 images of the split are in it, evenly spaced, with their posteriors
    and bounds.

    Args:
        run: A trained run.
        out: The file; None for `explorer.html` in the run's directory.
        split: train, validation or test.
        data_dir: As for `train`.

    Returns:
        The file's path.

    Raises:
        UsageError: The split has no images, or a part of the model has no counterpart in the browser.
        DataError: The images cannot be read.
        VaecliError: The run's checkpoint cannot be used, or the file cannot be written.
    """
    if run.vae.units is not None or run.vae.n_classes:  # the checkpoint is checked before images are read
        what = "is of vectors, of which" if run.vae.units is not None else "is told labels, for which"
        raise UsageError(f"{run.name}: {what} the explorer has no controls; vae sample writes what it draws")
    images = Dataset(run.config.data, run.config.support, data_dir).split(split)
    if len(images) == 0:
        raise UsageError(f"{run.name}: its {split} split has no images")
    n = min(MAX_IMAGES, max(1, MAX_BYTES // images.shape.n_pixels))
    page = _render(Shown(run, images.spread(n), split))
    path = out or run.path / "explorer.html"
    try:
        write_text(path, page)
    except OSError as error:
        raise VaecliError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _render(shown: Shown) -> str:
    """Return the page."""
    arrays = Arrays()
    vae, checked = shown.run.vae, min(len(shown.images), 200)
    precision = choose_precision(vae, Batch(*(part[:checked] for part in shown.batch)))
    content = {
        "model": describe_model(vae, shown.images.shape, precision, arrays),
        "images": _describe_images(shown, arrays),
        "latent": _describe_latent_space(shown, arrays),
        "run": _describe_run(shown, precision),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vaecli.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script, style = _script(), _source("style.css")
    return environment.get_template("explorer/page.html.j2").render(
        title=shown.run.name,
        summary=_summary(shown.config),
        caveat=shown.config.caveat,
        has_flow=shown.config.model.posterior in FLOWS,
        are_digits=shown.config.data.name == CENTRED,
        style=Markup(style),  # noqa: S704 - our own
        script=Markup(script),  # noqa: S704 - our own
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        content=_json_in_html(content),
        arrays=arrays.packed(),
    )


def _script() -> str:
    """Return the page's modules as one: each after those that it imports from, without a word of import or export."""
    sources = (_source(f"{name}.js") for name in SCRIPTS)
    joined = "\n".join(re.sub(r"^export ", "", source, flags=re.MULTILINE) for source in sources)
    return re.sub(r"^import [^;]*;\n", "", joined, flags=re.MULTILINE)


def _source(name: str) -> str:
    return (files("vaecli.reports") / "templates" / "explorer" / name).read_text(encoding="utf-8")


def _json_in_html(value: Any) -> Markup:
    """Return JSON that ends no script and begins no comment, whatever its texts say."""
    text = json.dumps(finite(value), separators=(",", ":"))  # ASCII: U+2028 is escaped as well
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 - nothing in it can be taken for markup


def _describe_images(shown: Shown, arrays: Arrays) -> dict[str, Any]:
    images, posterior, bound = shown.images, shown.posterior, shown.bound
    return {
        "split": shown.split,
        "pixels": arrays.add(images.pixels),
        "labels": None if images.labels is None else images.labels.tolist(),
        "mean": arrays.add(posterior.mean),
        "stddev": arrays.add(posterior.stddev),
        "log_likelihood": arrays.add(bound.log_likelihood),
        "kl": arrays.add(bound.kl),
        "preprocessing": _preprocessing(shown.config),
        "draws": DRAWS,
        "are_centred": shown.config.data.name == CENTRED,
    }


def _preprocessing(config: Config) -> str:
    """Say how pixels become x, as the page does it with what is drawn there."""
    support = config.support
    if support is Support.BINARY and config.data.binarize != "none":
        return "threshold" if config.data.binarize == "threshold" else "binarise"
    return "dequantise" if support is Support.UNIT_INTERVAL and config.data.dequantize else "scale"


def _describe_latent_space(shown: Shown, arrays: Arrays) -> dict[str, Any]:
    """Describe the latent dimensions, from the one that says most, and the plane in which means vary most."""
    mean = shown.posterior.mean
    variance = mean.var(0, correction=0)
    kl = kl_per_dimension(shown.posterior, shown.run.vae.prior)
    kl = None if kl is None else kl.mean(0)
    order = (variance if kl is None else kl).argsort(descending=True).tolist()
    dimensions = [
        {"index": i, "kl": None if kl is None else kl[i].item(), "is_active": variance[i].item() > ACTIVE}
        for i in order
    ]
    components = None if mean.shape[1] < 3 else arrays.add(_components(mean))
    return {"dimensions": dimensions, "components": components, "centre": arrays.add(mean.mean(0))}


def _components(mean: Float[Tensor, "N Z"]) -> Float[Tensor, "2 Z"]:
    """Return the first two principal axes, each pointing to where its largest entry is positive."""
    _, _, axes = torch.linalg.svd(mean - mean.mean(0), full_matrices=False)
    axes = torch.cat((axes, torch.eye(mean.shape[1])))[:2]  # of one image there are none
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return axes * largest.sign()


def _describe_run(shown: Shown, precision: Precision) -> dict[str, Any]:
    run, columns = shown.run, ("split", "epoch", "elbo", "log_likelihood", "kl")
    return {
        "name": run.name,
        "decoder": shown.config.model.decoder,
        "support": shown.config.support_title,
        "caveat": shown.config.caveat,
        "data": shown.config.data.name,
        "metrics": [{name: row[name] for name in columns} for row in run.metrics],
        "evaluations": [_figures(found) for found in _evaluations(run)],
        "config": dump_config(shown.config).rstrip(),
        "precision": {name: 16 if halved else 32 for name, halved in precision._asdict().items()},
    }


def _evaluations(run: Run) -> list[Evaluation]:
    """Return the run's evaluations that can be read."""
    found = []
    for path in sorted((run.path / "evaluations").glob("*.json")):
        try:
            found.append(read_evaluation(path))
        except VaecliError:  # of another kind, such as gaps, or damaged
            continue
    return found


def _figures(found: Evaluation) -> dict[str, Any]:
    return {
        "of": f"{found.n_images} {found.split} images, k = {found.k} ({found.proposal})",
        "elbo": found.elbo,
        "log_evidence": found.log_evidence,
        "bits_per_dim": found.bits_per_dim,
        "mean_squared_error": found.mean_squared_error,
    }


def _summary(config: Config) -> str:
    """Say in one line what the model is."""
    model = config.model
    network = {"mlp": "perceptrons", "conv": "convolutions"}.get(model.network, model.network)
    dimensions = "1 latent dimension" if model.latent_dim == 1 else f"{model.latent_dim} latent dimensions"
    return (
        f"{model.decoder} decoder, {dimensions}, {network}; "
        f"{model.posterior} posterior, {model.prior} prior; trained on {Path(config.data.name).name}"
    )

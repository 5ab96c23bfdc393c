"""TensorBoard's projector: the posterior means of test images, with their labels and thumbnails."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vaecli.data.dataset import Images
from vaecli.data.image_grid import grid
from vaecli.data.observations import Observe
from vaecli.files import write_atomically, write_text
from vaecli.model.vae import VAE

POINTS = 1000
CONFIG = """\
embeddings {{
  tensor_name: "posterior means of test images"
  tensor_path: "embedding.tsv"
{labels}  sprite {{
    image_path: "thumbnails.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
}}
"""


@torch.no_grad()
def write_projector(directory: Path, vae: VAE, images: Images, observe: Observe, noise: torch.Generator) -> None:
    """Write what the projector shows into a TensorBoard directory.

    Args:
        directory: Where the event files of the run are.
        vae: The model, on the images' device.
        images: At least two, and no more than POINTS.
        observe: How pixels become x.
        noise: What that draws from.
    """
    means = vae.encoder(observe(images.pixels, noise).input).mean.cpu().numpy()
    rows = "\n".join("\t".join(f"{value:.5g}" for value in row) for row in means)
    write_text(directory / "embedding.tsv", rows + "\n")
    if images.labels is not None:
        write_text(directory / "labels.tsv", "\n".join(map(str, images.labels.tolist())) + "\n")
    columns = math.ceil(math.sqrt(len(images)))  # the projector wants a square of thumbnails with nothing between
    pixels = images.pixels.reshape(-1, images.height, images.width).float().cpu().numpy() / 255
    thumbnails = 255 - grid(pixels.astype(np.float32), columns, gap=0)
    write_atomically(
        directory / "thumbnails.png", lambda file: Image.fromarray(thumbnails).save(file, format="PNG", optimize=True)
    )
    labels = '  metadata_path: "labels.tsv"\n' if images.labels is not None else ""
    config = CONFIG.format(labels=labels, width=images.width, height=images.height)
    write_text(directory / "projector_config.pbtxt", config)

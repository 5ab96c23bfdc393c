"""What a trained VAE does with images: `vae sample`, `reconstruct`, `encode`, `manifold` and `interpolate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaecli.cli.app import RUNS, Ckpt, DataDir, RunsDir, SplitName, app, examples, result
from vaecli.errors import UsageError, VaecliError

if TYPE_CHECKING:
    from vaecli.data.image_grid import Labels
    from vaecli.runs.run import Run

Labelled = Annotated[
    bool | None,
    typer.Option("--labels/--no-labels", help="Say in the picture what is what; the default on a terminal."),
]

Label = Annotated[
    int | None, typer.Option("--label", min=0, help="The class to draw, of a model that is told labels; default: all.")
]
Picture = Annotated[
    Path | None, typer.Option("--out", help="A .png, or a .npy of the images, or vectors, as for vae sample.")
]


@app.command(
    epilog=examples(
        "vae sample --ckpt 20261122-1431",
        "vae sample --ckpt runs/bernoulli/20261122-143125-bernoulli-s0 --n 64 --seed 1 --out new.png",
        "vae sample --ckpt 20261122-1431 --n 10000 --draw --out draws.npy",
        "vae sample --ckpt 20261122-1431 --label 3",
    )
)
def sample(
    ckpt: Ckpt,
    n: Annotated[int, typer.Option("--n", min=1, max=1_000_000, help="How many images.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A .png, or a .npy of float32 (n, H, W), in colour (n, H, W, C), in units of the 0..1 pixel; of "
            "vectors a .npy of (n, D) in their own units.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random numbers.")] = 0,
    draw: Annotated[bool, typer.Option("--draw", help="Draw pixels from p(x|z) instead of showing its mean.")] = False,
    label: Label = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Draw new images: z from the prior, then p(x|z). Prints the file's path."""
    check_suffix(out, ".png", ".npy")
    run = find(ckpt, runs_dir)
    of_label = "" if label is None else f"label{label}-"
    path = _path(out, run, f"sample-{'draws-' if draw else ''}{of_label}seed{seed}", ".npy")
    from vaecli.data.image_grid import grid
    from vaecli.evaluation.generation import sample as sample_run

    images = sample_run(run, n, seed=seed, draw=draw, label=label)
    _save(path, images if path.suffix == ".npy" else grid(images))


@app.command(
    epilog=examples("vae reconstruct --ckpt 20261122-1431", "vae reconstruct --ckpt 20261122-1431 --n 40 --out r.png")
)
def reconstruct(
    ckpt: Ckpt,
    n: Annotated[int, typer.Option("--n", min=1, max=10_000, help="How many images.")] = 20,
    split: SplitName = "test",
    out: Annotated[
        Path | None, typer.Option("--out", help="A .png, or an .npz of `originals` and `reconstructions`.")
    ] = None,
    data_dir: DataDir = None,
    labels: Labelled = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Show images above their reconstructions, the mean of p(x|z) at the posterior mean. Prints the file's path."""
    check_suffix(out, ".png", ".npz")
    run = find(ckpt, runs_dir)
    path = _path(out, run, f"reconstruct-{split}", ".npz")
    from vaecli.data.image_grid import Labels, paired_grid
    from vaecli.evaluation.generation import reconstruct as reconstruct_split

    pair = reconstruct_split(run, n, split=split, data_dir=data_dir)
    if path.suffix == ".npz":
        _save(path, pair._asdict())
        return
    found = len(pair.originals)
    columns = min(10, found)
    rows: list[str] = []
    for first in range(0, found, columns):
        last = min(first + columns, found) - 1
        numbers = f"image {first}" if first == last else f"images {first} to {last}"
        rows += [f"{split} {numbers}", "reconstructed"]
    _save(path, paired_grid(*pair, columns), _chosen(labels, Labels(left=rows)))


@app.command(
    epilog=examples("vae encode --ckpt 20261122-1431", "vae encode --ckpt 20261122-1431 --split train --out z.npz")
)
def encode(
    ckpt: Ckpt,
    split: SplitName = "test",
    out: Annotated[Path | None, typer.Option("--out", help="A .npz of mean (N, Z), stddev (N, Z) and labels.")] = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Write the posterior q(z|x) of every image of a split, with its labels. Prints the file's path."""
    check_suffix(out, ".npz")
    run = find(ckpt, runs_dir)
    from vaecli.evaluation.generation import encode as encode_split

    encoding = encode_split(run, split=split, data_dir=data_dir)._asdict()
    _save(out or _default(run, f"encode-{split}.npz"), {key: v for key, v in encoding.items() if v is not None})


@app.command(epilog=examples("vae manifold --ckpt 20261122-1431", "vae manifold --ckpt 20261122-1431 --out m.png"))
def manifold(
    ckpt: Ckpt,
    n: Annotated[int, typer.Option("--n", min=2, max=200, help="Images along a side.")] = 20,
    out: Picture = None,
    label: Label = None,
    labels: Labelled = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Show a 2-dimensional latent space, cells of equal prior mass (paper, figure 4). Prints the file's path."""
    check_suffix(out, ".png", ".npy")
    run = find(ckpt, runs_dir)
    path = _path(out, run, "manifold" if label is None else f"manifold-label{label}", ".npy")
    from vaecli.data.image_grid import Labels, grid
    from vaecli.evaluation.generation import latent_grid
    from vaecli.evaluation.generation import manifold as manifold_of

    images = manifold_of(run, n, label=label)
    if path.suffix == ".npy":
        _save(path, images)
        return
    z = latent_grid(run, n).reshape(n, n, 2).tolist()
    columns, rows = [f"z1 = {point[0]:.2f}" for point in z[0]], [f"z2 = {row[0][1]:.2f}" for row in z]
    _save(path, grid(images, n), _chosen(labels, Labels(columns, rows)))


@app.command(
    epilog=examples(
        "vae interpolate --ckpt 20261122-1431 --from 0 --to 3",
        "vae interpolate --ckpt 20261122-1431 --from 7 --to 2 --n 20 --out line.png",
    )
)
def interpolate(
    ckpt: Ckpt,
    first: Annotated[int, typer.Option("--from", min=0, help="The number of the first image in its split.")] = 0,
    second: Annotated[int, typer.Option("--to", min=0, help="The number of the second.")] = 1,
    n: Annotated[int, typer.Option("--n", min=2, max=1000, help="How many images.")] = 10,
    split: SplitName = "test",
    out: Picture = None,
    data_dir: DataDir = None,
    labels: Labelled = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Show the way between two images, along a line through the latent space. Prints the file's path."""
    check_suffix(out, ".png", ".npy")
    run = find(ckpt, runs_dir)
    path = _path(out, run, f"interpolate-{split}-{first}-{second}", ".npy")
    from vaecli.data.image_grid import Labels, grid
    from vaecli.evaluation.generation import interpolate as interpolate_between

    images = interpolate_between(run, first, second, n, split=split, data_dir=data_dir)
    if path.suffix == ".npy":
        _save(path, images)
        return
    way = [f"{i / (n - 1):.0%}" for i in range(n)]
    _save(
        path,
        grid(images, n),
        _chosen(labels, Labels(way, [f"from {split} image {first}"], [f"to {split} image {second}"])),
    )


def find(ckpt: str, runs_dir: Path) -> "Run":
    """Find a run, by a module that is imported only now."""
    from vaecli.runs.run import find_run

    return find_run(ckpt, runs_dir)


def check_suffix(out: Path | None, *allowed: str) -> None:
    """Refuse a file name before any work is done."""
    from vaecli.files import may_be_directory

    if out is not None and out.suffix not in allowed:
        raise UsageError(f"--out {out}: must end in {' or '.join(allowed)}")
    if out is not None and not may_be_directory(out.parent):
        raise UsageError(f"--out {out}: there is no directory {out.parent}")


def _path(out: Path | None, run: "Run", name: str, array: str) -> Path:
    """Return where to write: a picture of this name, or of vectors an array. Raises UsageError where it cannot be."""
    of_vectors = run.config.data.kind == "vectors"
    if of_vectors and out is not None and out.suffix == ".png":
        raise UsageError(f"--out {out}: {run.name} is of vectors, which are no pictures; it must end in {array}")
    return out or _default(run, name + (array if of_vectors else ".png"))


def _default(run: "Run", name: str) -> Path:
    from vaecli.files import may_be_directory

    directory = run.path / "samples"
    return (directory if may_be_directory(directory) else run.path) / name


def _chosen(wanted: bool | None, labels: "Labels") -> "Labels | None":
    """Return the labels if they are wanted: without a word, by who reads the path that is printed."""
    return labels if (sys.stdout.isatty() if wanted is None else wanted) else None


def _save(path: Path, content: Any, labels: "Labels | None" = None) -> None:
    import numpy as np

    from vaecli.data.image_grid import save_png
    from vaecli.files import write_atomically

    try:
        if path.suffix == ".png":
            save_png(path, content, labels=labels)
        elif path.suffix == ".npz":
            write_atomically(path, lambda file: np.savez_compressed(file, **content))
        else:
            write_atomically(path, lambda file: np.save(file, content, allow_pickle=False))
    except OSError as error:
        raise VaecliError(f"{path}: cannot be written: {error.strerror}") from error
    result(str(path))

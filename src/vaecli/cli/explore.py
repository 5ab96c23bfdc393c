"""`vae explore`: a page in which a run's encoder and decoder work in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from vaecli.cli.app import RUNS, Ckpt, DataDir, RunsDir, SplitName, app, examples, result
from vaecli.cli.generate import check_suffix, find


@app.command(
    epilog=examples(
        "vae explore --ckpt 20261122-1431 --open",
        "vae explore --ckpt runs/bernoulli/20261122-143125-bernoulli-s0 --out explorer.html",
    )
)
def explore(
    ckpt: Ckpt,
    out: Annotated[
        Path | None, typer.Option("--out", help="An .html; the default is explorer.html in the run's directory.")
    ] = None,
    split: SplitName = "test",
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Write one HTML file to walk through the latent space and draw for the encoder. Prints the file's path.

    It needs no server and no network, and can be mailed.
    """
    check_suffix(out, ".html")
    run = find(ckpt, runs_dir)
    from vaecli.reports.explorer import explore as explore_run

    path = explore_run(run, out, split=split, data_dir=data_dir)
    result(str(path))
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())

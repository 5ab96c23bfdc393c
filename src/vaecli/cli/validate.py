"""`vae validate`: whether files are configs and sweeps that would run."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from vaecli.cli import completion
from vaecli.cli.app import Json, Quiet, app, caveats, examples, note, result
from vaecli.errors import ConfigError, UsageError

SWEEPS_OWN = {"base", "grid", "points"}
"""Keys that a sweep has and a config has not."""


@app.command(
    epilog=examples("vae validate mine.yaml", "vae validate configs/*.yaml sizes.yaml", "vae validate mine.yaml --json")
)
def validate(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Configs and sweeps; shipped ones by name.", autocompletion=completion.configs
        ),
    ],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say of each config and sweep whether it is right, and all that is wrong, with lines; images are not looked at.

    The exit code is 2 if any is wrong.
    """
    found = [_validate(file, silent=quiet or as_json) for file in files]
    if as_json:
        result({"files": [{**verdict._asdict(), "right": not verdict.problems} for verdict in found]})
    else:
        for file, _, problems in found:
            n = f"{len(problems)} error{'s' * (len(problems) > 1)}"
            result("\n".join([f"{file}: {n if problems else 'right'}", *(f"  {problem}" for problem in problems)]))
    if any(verdict.problems for verdict in found):
        raise typer.Exit(UsageError.exit_code)


class _Verdict(NamedTuple):
    file: str
    kind: str
    problems: list[str]


def _validate(file: str, *, silent: bool) -> _Verdict:
    """Return what is wrong with a file; note what is right and may not be meant."""
    from vaecli.config.loading import find_config, load_config
    from vaecli.sweeps.sweep import load_sweep

    verdict = _Verdict(file, "config", [])
    try:
        path = find_config(file)
        if _is_sweep(path):
            verdict = verdict._replace(kind="sweep")
            configs = load_sweep(path).configs
        else:
            configs = (load_config(path),)
    except ConfigError as error:
        verdict.problems.extend(error.problems)
    else:
        for caveat in () if silent else caveats(configs, ()):
            note(f"{file}: {caveat}")
    return verdict


def _is_sweep(path: Path) -> bool:
    """Return whether a file has a key of a sweep; what cannot be read is told as of a config."""
    import yaml

    try:
        node = yaml.compose(path.read_bytes()[:1_000_000], yaml.SafeLoader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return False
    return isinstance(node, yaml.MappingNode) and not SWEEPS_OWN.isdisjoint(key.value for key, _ in node.value)

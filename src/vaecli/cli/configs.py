"""`vae configs`: the configs that ship with the package, and what a config may hold."""

from pathlib import Path
from typing import Annotated

import typer

from vaecli.cli import completion
from vaecli.cli.app import app, examples, note, result
from vaecli.errors import UsageError, command_line

configs = typer.Typer(
    help="List, print and copy the configs that ship with vaecli, and print the JSON Schema of all configs.",
    no_args_is_help=True,
    epilog=examples("vae configs ls", "vae configs cp bernoulli mine.yaml", "vae configs schema"),
)
app.add_typer(configs, name="configs")

Name = Annotated[str, typer.Argument(help="A shipped config's name, or a path.", autocompletion=completion.configs)]


@configs.command("ls", epilog=examples("vae configs ls"))
def ls() -> None:
    """List the shipped configs, each with what it is."""
    from vaecli.config.loading import shipped_configs

    found = shipped_configs()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        comments = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        summary = comments[1] if len(comments) > 1 else ""
        result(f"{name:{width}}  {summary}")


@configs.command("cat", epilog=examples("vae configs cat bernoulli", "vae configs cat tutorial > mine.yaml"))
def cat(name: Name) -> None:
    """Print a config as it ships, comments and all."""
    from vaecli.config.loading import find_config

    path = find_config(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error
    result(text.rstrip("\n"))


@configs.command("cp", epilog=examples("vae configs cp bernoulli mine.yaml", "vae configs cp gaussian ."))
def cp(name: Name, target: Annotated[Path, typer.Argument(help="A file or a directory.")] = Path()) -> None:
    """Copy a shipped config to a file of your own, with the schema that editors look for beside it."""
    from vaecli.config.json_schema import SCHEMA_FILE, schema_text
    from vaecli.config.loading import find_config
    from vaecli.files import may_be_directory, write_atomically, write_text

    source = find_config(name)
    path = target / source.name if may_be_directory(target) else target
    try:
        content = source.read_bytes()
        write_atomically(path, lambda file: file.write(content), overwrite=False)
        write_text(path.parent / SCHEMA_FILE, schema_text())
    except FileExistsError as error:
        raise UsageError(f"{path}: exists already; name another file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    note(f"copied; run it with: {command_line('vae', 'train', '--config', path)}")
    result(str(path))


@configs.command("schema", epilog=examples("vae configs schema", "vae configs schema > vaecli.schema.json"))
def schema() -> None:
    """Print the JSON Schema of the config YAML: every key with its meaning, its default and its range."""
    from vaecli.config.json_schema import schema_text

    result(schema_text().rstrip("\n"))

"""Build the wheel and the sdist, install each where nothing of this checkout is, and train from there.

python scripts/check_package.py [DIRECTORY]

The wheel goes into an empty environment with all that it needs; the sdist, which pip builds first, takes its place.
What is built stays in DIRECTORY, by default dist/.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parents[1]
LICENCE = "MIT AND CC-BY-SA-3.0"
TRAINING = ("--config", "bernoulli", "data.train=1000", "data.validation=200", "training.epochs=1", "--quiet")


def build(out: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it; return the wheel and the sdist."""
    run(sys.executable, "-m", "build", "--outdir", out, ROOT)
    (wheel,), (sdist,) = out.glob("vaecli-*.whl"), out.glob("vaecli-*.tar.gz")
    return wheel, sdist


def check_metadata(metadata: Message) -> None:
    """Check what an index shows: the licences, and a description without pictures and links that lead nowhere."""
    text = str(metadata.get_payload())
    assert metadata["License-Expression"] == LICENCE, metadata["License-Expression"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert text.startswith("# vaecli")
    assert "![" not in text, "a picture"
    assert "](docs/" not in text, "a link into the repository"


def check_installed(environment: Path, package: Path, *options: str) -> None:
    """Install a package into an environment, and train and draw samples with it from an empty directory."""
    programs = environment / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, package)
    run(programs / "python", "-m", "pip", "check")
    with tempfile.TemporaryDirectory() as empty:
        assert run(programs / "vae", "--version", cwd=empty) == run(programs / "vaecli", "--version", cwd=empty)
        assert "bernoulli" in run(programs / "vaecli", "configs", "ls", cwd=empty)
        trained = run(programs / "vae", "train", *TRAINING, cwd=empty).splitlines()[-1]
        status = json.loads((Path(empty) / trained / "status.json").read_text())
        assert status["state"] == "completed", status
        run(programs / "vae", "sample", "--ckpt", trained, cwd=empty)
        where = run(programs / "python", "-c", "import vaecli; print(vaecli.__file__)", cwd=empty)
        assert where.startswith(str(environment)), where


def run(*command: object, cwd: str | None = None) -> str:
    """Run a command without this checkout's modules; return what it printed, or end with what it said."""
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VAECLI_RUNS_DIR"}}
    found = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)  # noqa: S603, PLW1510
    if found.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {found.returncode}\n{found.stdout}{found.stderr}")
    return found.stdout.strip()


def check(out: Path) -> None:
    """Do all of it."""
    with tempfile.TemporaryDirectory() as temporary:
        wheel, sdist = build(Path(temporary) / "dist")
        with zipfile.ZipFile(wheel) as files:
            (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
            check_metadata(message_from_bytes(files.read(name)))
        with tarfile.open(sdist) as files:
            names = {name.partition("/")[2] for name in files.getnames()}
        assert names >= {"tests/test_package.py", "docs/models.md", "docs/images/samples.png", "Makefile", "LICENSE"}
        environment = Path(temporary) / "environment"
        venv.create(environment, with_pip=True)
        check_installed(environment.resolve(), wheel)
        check_installed(environment.resolve(), sdist, "--force-reinstall", "--no-deps")
        out.mkdir(exist_ok=True)
        for package in (wheel, sdist):
            print(package.replace(out / package.name))


if __name__ == "__main__":
    check(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")

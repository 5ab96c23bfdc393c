"""What a shell is given to complete, asked for as bash and zsh ask: by the words of the line."""

import subprocess
import sys

import pytest

from vaecli import cli
from vaecli.config.likelihoods import LIKELIHOODS


def complete(monkeypatch, capsys, line: str) -> list[str]:
    """Return what bash is given for the last word of a line, which it has split at spaces and at `=`."""
    words = line.replace("=", " = ").split(" ")
    words = [word for word in words[:-1] if word] + words[-1:]
    if len(words) > 1 and words[-1] == "" and words[-2] == "=":  # the cursor stands right behind it
        words.pop()
    monkeypatch.setenv("_VAE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setattr(sys, "argv", ["vae"])
    with pytest.raises(SystemExit):
        cli.main()
    return capsys.readouterr().out.split()


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return lambda line: complete(monkeypatch, capsys, line)


def test_configs_are_completed_by_name_and_by_path(ask, tmp_path):
    (tmp_path / "big.yaml").touch()
    (tmp_path / "big.txt").touch()
    (tmp_path / "bins").mkdir()
    (tmp_path / "bins" / "one.yml").touch()
    assert ask("vae train --config b") == ["bernoulli", "best", "big.yaml", "bins/"]
    assert ask("vae train --config bins/") == ["bins/one.yml"]
    assert ask("vae configs cat tut") == ["tutorial"]
    assert ask("vae train --config no-such/") == []


def test_runs_are_completed_newest_first(ask, tmp_path):
    for name in ("20260101-000000-bernoulli-s0", "20260102-000000-gaussian-s1", "20250101-000000-bernoulli-s0"):
        run = tmp_path / "runs" / "some" / name
        run.mkdir(parents=True)
        (run / "checkpoints").mkdir()
        (run / "config.yaml").touch()
    assert ask("vae evaluate --ckpt 2026") == ["20260102-000000-gaussian-s1", "20260101-000000-bernoulli-s0"]
    assert ask("vae runs show 2025") == ["20250101-000000-bernoulli-s0"]
    assert ask("vae train --resume 2026010") == ["20260102-000000-gaussian-s1", "20260101-000000-bernoulli-s0"]
    assert ask("vae evaluate --runs-dir elsewhere --ckpt 2026") == []
    assert ask("vae evaluate --ckpt ru") == ["runs/"]


def test_settings_are_completed_by_key_and_then_by_value(ask):
    assert ask("vae train model.latent") == ["model.latent_dim=", "model.latent_dim=20"]
    assert ask("vae train model.m") == ["model.mean=", "model.min_log_sigma="]
    assert ask("vae train seed=1 model.dec") == [f"model.decoder={name}" for name in LIKELIHOODS]
    assert ask("vae train model.decoder=") == list(LIKELIHOODS)
    assert ask("vae train seed=1 model.decoder=g") == ["gaussian"]
    assert ask("vae train model.prior=") == ["standard", "mixture", "vamp", "flow"]
    assert ask("vae train data.dequantize=") == ["true", "false"]
    assert ask("vae train model.latent_dim=") == []
    assert ask("vae compare-decoders --decoders bernoulli,i") == ["bernoulli,i-gaussian"]


def test_a_shell_that_keeps_words_whole_gets_whole_settings(monkeypatch, capsys):
    monkeypatch.setenv("_VAE_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "vae train model.decoder=b")
    monkeypatch.setattr(sys, "argv", ["vae"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "model.decoder=bernoulli" in capsys.readouterr().out


def test_completion_imports_no_torch(tmp_path):
    code = (
        "import sys\nfrom vaecli import cli\nsys.argv = ['vae']\n"
        "try:\n    cli.main()\nfinally:\n    print('torch' in sys.modules)"
    )
    asked = {"_VAE_COMPLETE": "complete_bash", "COMP_WORDS": "vae train --resume 2", "COMP_CWORD": "3"}
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)} | asked
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert found.stdout.split()[-1] == "False", found.stderr

import errno
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vaecli import cli
from vaecli.files import lock
from vaecli.runs.checkpoint import load_checkpoint, save_checkpoint
from vaecli.runs.run import LOCK, list_runs, load_run


@pytest.fixture
def vae(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty directory; returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAECLI_DEBUG", raising=False)

    def run(*arguments: object):
        monkeypatch.setattr(sys, "argv", ["vae", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def config(tmp_path, faces) -> Path:
    path = tmp_path / "small.yaml"
    values = {
        "data": {"name": str(faces)},
        "model": {"latent_dim": 3, "hidden_dim": 8},
        "training": {"epochs": 2, "batch_size": 10},
        "device": "cpu",
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def trained(vae, config) -> Path:
    code, out, _ = vae("train", "--config", config)
    assert code == 0
    return Path(out.splitlines()[-1])


def fresh(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """A process of its own."""
    environment = os.environ | variables
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_help_and_config_errors_need_no_torch():
    code = (
        "import sys; from vaecli.cli import main; sys.argv = ['vae', *{}]\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    shown = fresh("-c", code.format(["--help"]))
    assert shown.returncode == 0
    assert shown.stdout.endswith("False\n")
    for command in ("train", "sample", "reconstruct", "encode", "runs", "configs"):
        assert command in shown.stdout
    wrong = fresh("-c", code.format(["train", "--config", "bernoulli", "objective.L=0"]))
    assert (wrong.returncode, wrong.stdout) == (2, "False\n")
    listed = fresh("-c", code.format(["runs", "ls"]))
    assert listed.stdout.endswith("False\n")


def test_python_m_vaecli_is_vae():
    assert fresh("-m", "vaecli", "--version").stdout.startswith("vaecli 0.")


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "evaluate",
        "compare-decoders",
        "sample",
        "reconstruct",
        "encode",
        "manifold",
        "interpolate",
        "runs ls",
        "runs show",
        "configs ls",
        "configs cat",
        "configs cp",
    ],
)
def test_every_help_ends_in_examples(vae, command):
    code, out, _ = vae(*command.split(), "--help")
    assert code == 0
    assert f"vae {command}" in out[out.index("Examples") :]


def test_train_prints_its_run_directory_last_and_its_progress_beside(vae, config, tmp_path):
    code, out, err = vae("train", "--config", config)
    (run,) = list_runs(tmp_path / "runs")
    assert code == 0
    assert out == f"runs/small/{run.name}\n"
    assert "epoch 1/2  train ELBO" in err
    assert "completed: best validation ELBO" in err


def test_quiet_and_json(vae, config):
    code, out, err = vae("train", "--config", config, "--quiet")
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    code, out, err = vae("train", "--config", config, "--json", "--seed", 5)
    found = json.loads(out)
    assert (code, err, found["state"], found["seed"]) == (0, "", "completed", 5)
    assert load_run(found["run"]).status["best"] == found["best"]


def test_settings_over_the_config(vae, config):
    _, out, err = vae(
        "train", "--config", config, "model.decoder=gaussian", "data.binarize=static", "model.latent_dim=2"
    )
    run = load_run(out.strip())
    assert (run.config.model.decoder, run.config.model.latent_dim) == ("gaussian", 2)
    assert "vae: data.binarize: no effect, gaussian is not a binary likelihood" in err


def test_a_relaxed_bound_is_marked_wherever_it_is_shown(vae, config):
    mark = "relaxed, not a likelihood"
    _, out, err = vae("train", "--config", config, "data.binarize=none")
    assert [mark in line for line in err.splitlines() if "ELBO" in line] == [True] * 3
    assert mark in vae("runs", "ls")[1]
    assert mark in vae("runs", "show", out.strip())[1]
    assert json.loads(vae("runs", "ls", "--json")[1])["runs"][0]["caveat"] == mark


def test_a_comparison_says_once_what_has_no_effect(vae, config):
    _, _, err = vae(
        "compare-decoders", "--config", config, "--seeds", 1, "--k", 2, "data.binarize=none", "model.mean=linear"
    )
    notes = [line for line in err.splitlines() if line.startswith(("vae: data.", "vae: model."))]
    assert notes == [
        "vae: data.binarize: no effect, gaussian is not a binary likelihood",
        "vae: data.binarize: no effect, i-gaussian is not a binary likelihood",
        "vae: model.mean: no effect, bernoulli does not have it",
        "vae: data.binarize: none puts grey pixels into a Bernoulli: its bound is relaxed, not a likelihood",
    ]
    assert [line[:3] for line in err.splitlines() if "ELBO" in line] == ["1/3", "2/3", "3/3"]


def test_runs_are_chosen_sorted_and_compared(vae, config):
    for settings in (["seed=1"], ["seed=2", "model.latent_dim=2"], ["model.decoder=i-gaussian"]):
        assert vae("train", "--config", config, "-q", *settings)[0] == 0
    listed = json.loads(vae("runs", "ls", "--json", "--where", "model.decoder=bernoulli", "--where", "seed=2")[1])[
        "runs"
    ]
    assert [run["seed"] for run in listed] == [2]
    assert "no such runs" in vae("runs", "ls", "--where", "seed=9")[2]
    found = json.loads(vae("runs", "ls", "--json", "--sort", "elbo")[1])["runs"]
    assert [run["support"] for run in found] == ["binary", "binary", "unit interval"]
    assert found[0]["best"]["elbo"] > found[1]["best"]["elbo"]
    code, _, err = vae("runs", "ls", "--where", "model.decodr=x")
    assert code == 2
    assert "'model.decodr=x': is not a KEY=VALUE of a config; did you mean model.decoder?" in err
    one, two = sorted((run["run"] for run in found[:2]), key=lambda path: path.endswith("s2"))
    lines = vae("runs", "diff", one, two)[1].splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["model.latent_dim", "seed"]
    assert lines[1].split()[1:] == ["3", "2"]
    different = json.loads(vae("runs", "diff", one, two, "--json")[1])
    assert different["settings"] == {"model.latent_dim": [3, 2], "seed": [1, 2]}


def test_sweep(vae, config, tmp_path):
    spec = tmp_path / "sizes.yaml"
    values = {"base": "small.yaml", "grid": {"model.latent_dim": [1, 2]}, "evaluation": {"k": 2, "binarised": False}}
    spec.write_text(yaml.safe_dump(values))
    assert vae("sweep", spec, "--dry-run")[:2] == (0, "latent_dim 1\nlatent_dim 2\n")
    assert json.loads(vae("sweep", spec, "--dry-run", "--json")[1]) == {
        "runs": [{"model.latent_dim": 1}, {"model.latent_dim": 2}]
    }
    code, out, err = vae("sweep", spec)
    assert (code, out) == (0, "runs/sweeps/sizes/report.html\n")
    assert "vae: 2 runs, 1 at a time, each on one thread" in err
    assert [line.split(":")[0] for line in err.splitlines() if "ELBO" in line] == [
        "1/2  latent_dim 1",
        "2/2  latent_dim 2",
    ]
    code, out, _ = vae("sweep", spec, "--json")
    assert [run["model.latent_dim"] for run in json.loads(out)["runs"]] == [1, 2]
    spec.write_text(yaml.safe_dump(values | {"grid": {"optimizer.learning_rate": [1e-3, 1e30]}}))
    code, _, err = vae("sweep", spec, "--out", "diverging")
    assert code == 5
    assert "again with: vae train --config " in err
    code, _, err = vae("sweep", "nothing.yaml")
    assert (code, err) == (2, "vae: nothing.yaml: no such sweep; it is a YAML file with a grid of settings\n")


def test_an_ill_posed_bound_says_so(vae, config):
    settings = ("model.decoder=gaussian", "data.dequantize=false", "model.min_log_sigma=null")
    _, _, err = vae("train", "--config", config, *settings)
    assert "ill-posed: the bound has no upper limit; data.dequantize: true fixes it" in err


def test_resume_and_init_from(vae, config, trained):
    code, out, _ = vae("train", "--config", config, "--init-from", trained.name, "optimizer.schedule=constant")
    new = out.splitlines()[-1]
    assert code == 0
    assert vae("train", "--resume", new, "training.epochs=3")[0] == 0
    assert load_run(new).status["epoch"] == 3
    code, _, err = vae("train", "--resume", trained.name, "training.epochs=3")
    assert code == 2
    assert "--init-from" in err


def test_sample_reconstruct_encode(vae, trained):
    code, out, _ = vae("sample", "--ckpt", trained, "--n", 9)
    assert (code, out.strip()) == (0, f"{trained}/samples/sample-seed0.png")
    with Image.open(out.strip()) as image:
        assert image.size == (2 * (3 * 6 + 1), 2 * (3 * 7 + 1))
    vae("sample", "--ckpt", trained.name[:8], "--n", 5, "--draw", "--out", "x.npy")
    assert np.load("x.npy").shape == (5, 6, 5)
    code, out, _ = vae("reconstruct", "--ckpt", trained / "checkpoints" / "last.pt", "--n", 3, "--split", "validation")
    assert Path(out.strip()).name == "reconstruct-validation.png"
    assert Path(out.strip()).exists()
    vae("encode", "--ckpt", trained, "--split", "train", "--out", "z.npz")
    with np.load("z.npz") as found:
        assert {name: found[name].shape for name in found} == {"mean": (45, 3), "stddev": (45, 3), "labels": (45,)}


def test_evaluate(vae, trained):
    code, out, err = vae("evaluate", "--ckpt", trained, "--k", 5, "--limit", 4)
    assert (code, err.splitlines()[-1].startswith("importance sampling: 100 %")) == (0, True)
    assert "bernoulli, best at step" in out
    assert "4 test images, pixels binarised anew" in out
    code, out, err = vae("evaluate", "--ckpt", trained, "--k", 5, "--json")
    found = json.loads(out)
    assert (code, err, found["k"], found["n_images"]) == (0, "", 5, 6)
    for arguments, what in (
        (("--k", 0), "--k"),
        (("--split", "tests"), "--split"),
        (("--limit", 0), "--limit"),
        (("--device", "cuda:9"), "is not there"),
    ):
        code, out, err = vae("evaluate", "--ckpt", trained, *arguments)
        assert (code, out) == (2, "")
        assert what in err


def test_a_run_that_is_still_training_is_evaluated_at_its_newest_checkpoint(vae, trained):
    run = load_run(trained)
    with lock(run.path / LOCK):
        _, out, err = vae("evaluate", "--ckpt", trained, "--k", 2)
    assert "is still training: its newest checkpoint is evaluated" in err
    assert "bernoulli, last at step" in out


def test_manifold_and_interpolate(vae, config, trained):
    code, _, err = vae("manifold", "--ckpt", trained)
    assert code == 2
    assert "has 3 latent dimensions" in err
    _, out, _ = vae("train", "--config", config, "model.latent_dim=2", "--quiet")
    assert vae("manifold", "--ckpt", out.strip(), "--n", 4, "--out", "m.png")[:2] == (0, "m.png\n")
    with Image.open("m.png") as image:
        assert image.size == (2 * (4 * 6 + 1), 2 * (4 * 7 + 1))
    code, out, _ = vae("interpolate", "--ckpt", trained, "--from", 0, "--to", 5, "--n", 7)
    assert (code, Path(out.strip()).name) == (0, "interpolate-test-0-5.png")
    code, _, err = vae("interpolate", "--ckpt", trained, "--to", 6)
    assert code == 2
    assert "has images 0 to 5, and no 6" in err


def test_pictures_have_labels_for_who_looks_at_them(vae, config, monkeypatch):
    _, run, _ = vae("train", "--config", config, "model.latent_dim=2", "--quiet")

    def widths(*arguments):
        found = []
        for choice in ((), ("--labels",), ("--no-labels",)):
            for terminal in (False, True):
                monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal)
                assert vae(*arguments, "--ckpt", run.strip(), *choice, "--out", "x.png")[0] == 0
                with Image.open("x.png") as image:
                    found.append(image.size[0])
        return found

    for arguments in (("reconstruct", "--n", 3), ("interpolate", "--n", 3), ("manifold", "--n", 3)):
        plain = 2 * (3 * 6 + 1)
        in_pipe, on_terminal, *rest = widths(*arguments)
        assert in_pipe == plain
        assert on_terminal > 3 * plain
        assert rest == [on_terminal, on_terminal, plain, plain]


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_takes_long_before_the_first_step_says_so_and_is_stopped_at_once(tmp_path, command, number):
    """A sparse array of 400 GB, whose checksum alone would take minutes."""
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        shape = (10**9, 20, 20)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + np.prod(shape, dtype=np.int64))
    (tmp_path / "small.yaml").write_text(
        f"data: {{name: {path}, validation: 0}}\nmodel: {{init: torch, hidden_dim: 8}}"
    )
    (tmp_path / "sweep.yaml").write_text("base: small.yaml\ngrid: {seed: [0, 1]}")
    arguments = {"train": ["--config", "small.yaml"], "sweep": ["sweep.yaml"]}[command]
    process = subprocess.Popen(
        [sys.executable, "-m", "vaecli", command, *arguments],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    said = ""
    while "computing the checksum" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "stopped while computing the checksum of" in err
    assert not list(tmp_path.glob("runs/small"))
    assert not list(tmp_path.glob("cache/vaecli/images/*"))


def test_compare_decoders(vae, config):
    code, out, err = vae("compare-decoders", "--config", config, "--seeds", 1, "--k", 3)
    assert (code, out) == (0, "runs/comparisons/small/report.html\n")
    assert "3/3  decoder bernoulli, seed 0: ELBO" in err
    code, out, _ = vae("compare-decoders", "--config", config, "--seeds", 1, "--k", 3, "--json")
    assert [run["decoder"] for run in json.loads(out)["runs"]] == ["gaussian", "i-gaussian", "bernoulli"]
    code, _, err = vae("compare-decoders", "--config", config, "--decoders", "gaussian,gausian")
    assert code == 2
    assert "'gausian' is not a decoder; did you mean gaussian?" in err
    settings = ("--decoders", "bernoulli", "--seeds", 1, "--k", 3, "--out", "bad", "optimizer.learning_rate=1e30")
    code, _, err = vae("compare-decoders", "--config", config, *settings)
    assert code == 5
    assert "1 of 1 runs failed" in err
    assert "training diverged" in Path("bad/report.md").read_text()


def test_runs_ls_and_show(vae, trained):
    code, out, _ = vae("runs", "ls")
    status = load_run(trained).status
    assert code == 0
    assert f"small/{trained.name}" in out
    assert f"{status['best']['elbo']:.2f}" in out
    shown = vae("runs", "show", trained.name)[1]
    assert "state       completed" in shown
    assert "latent_dim: 3" in shown
    assert json.loads(vae("runs", "show", trained.name, "--json")[1])["status"] == status
    assert vae("runs", "ls", "--runs-dir", "none")[1:] == (
        "", "vae: no runs in none/ yet; `vae train --config bernoulli.yaml` makes one\n",
    )  # fmt: skip


def test_configs(vae):
    assert "bernoulli" in vae("configs", "ls")[1]
    assert vae("configs", "cat", "tutorial")[1].startswith("# vae train --config tutorial.yaml")
    assert vae("configs", "cp", "bernoulli", "mine.yaml")[1] == "mine.yaml\n"
    code, _, err = vae("configs", "cp", "bernoulli", "mine.yaml")
    assert code == 2
    assert "exists already" in err
    assert vae("configs", "cat", "bernouli")[0] == 2


def test_a_config_that_could_not_be_copied_leaves_nothing(vae, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        code, out, err = vae("configs", "cp", "bernoulli", "mine.yaml")
    assert (code, out, err) == (2, "", "vae: mine.yaml: cannot be written: No space left on device\n")
    assert list(Path().iterdir()) == []
    assert vae("configs", "cp", "bernoulli", "mine.yaml")[:2] == (0, "mine.yaml\n")


def test_usage_errors(vae, config, trained):
    for arguments, what in (
        (("train",), "needs --config FILE"),
        (("train", "--resume", trained, "--config", config), "leave --config"),
        (("train", "--config", "nothing"), "no such config; known: bernoulli"),
        (
            ("train", "--config", config, "data.name=imagenet"),
            "data.name: must be the path of a .npy, .npz, -ubyte or -ubyte.gz file, or one of 'mnist'",
        ),
        (("train", "--config", config, "--device", "cuda:77"), "device: cuda:77 is not there; this machine has cpu"),
        (("train", "--config", config, "--device", "tpu"), "device"),
        (("train", "--config", config, "seed=-1", "objective.L=0"), "2 errors"),
        (("sample", "--ckpt", "nothing"), "no such run or checkpoint"),
        (("sample", "--ckpt", trained, "--out", "x.jpg"), "must end in .png or .npy"),
        (("sample", "--ckpt", trained, "--out", "none/x.png"), "there is no directory none"),
        (("sample", "--ckpt", trained, "--n", "0"), "--n"),
        (("train", "--config", config, "--epochs", "3"), "No such option"),
    ):
        code, out, err = vae(*arguments)
        assert (code, out) == (2, ""), arguments
        assert what in err, arguments
        assert "Traceback" not in err


def test_data_errors(vae, config, faces):
    faces.write_bytes(faces.read_bytes()[:300])
    code, out, err = vae("train", "--config", config)
    assert (code, out) == (3, "")
    assert err.splitlines()[-1].startswith(f"vae: {faces}: not a readable .npz file")
    faces.unlink()
    assert vae("train", "--config", config)[0] == 3
    assert not Path("runs").exists()  # nothing was begun


def test_run_time_errors(vae, config, trained):
    (trained / "checkpoints" / "best.pt").write_bytes(b"damaged")
    code, _, err = vae("sample", "--ckpt", trained)
    assert code == 1
    assert "best.pt: " in err
    Path("file").touch()
    code, _, err = vae("train", "--config", config, "--runs-dir", "file")
    assert code == 1
    assert "cannot be written" in err


def test_divergence(vae, config):
    code, out, err = vae("train", "--config", config, "optimizer.learning_rate=1e30")
    assert (code, out) == (4, "")
    assert "vae: training diverged at step " in err


def test_debug_shows_the_traceback():
    found = fresh("-m", "vaecli", "train", "--config", "nothing", VAECLI_DEBUG="1")
    assert "Traceback" in found.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_that_can_be_resumed(config, tmp_path, number):
    command = [sys.executable, "-m", "vaecli", "train", "--config", str(config), "training.epochs=100000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("epoch"):
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    (run,) = list_runs(tmp_path / "runs")
    assert (process.returncode, out) == (130, "")
    assert f"go on with: vae train --resume runs/small/{run.name}" in err
    assert run.status["state"] == "interrupted"
    assert torch.load(run.last, weights_only=True)["progress"]["step"] > 0


def test_a_run_that_comes_to_its_limit_is_resumable(vae, config):
    code, out, err = vae("train", "--config", config, "--max-images", "50")
    assert (code, out) == (6, "")
    words = shlex.split(err.strip().rpartition("go on with: vae ")[2])
    assert vae("train", "--config", config, "--max-time", "0.000001s")[0] == 6
    code, out, _ = vae(*words)
    assert code == 0
    assert load_run(out.strip()).status["epoch"] == 2
    code, _, err = vae("train", "--config", config, "--max-time", "soon")
    assert (code, err) == (2, "vae: 'soon': is not a duration; write 90s, 45m, 2h, 1h30m or 2d\n")


@pytest.mark.filterwarnings("default::vaecli.errors.ReproducibilityWarning")
def test_other_conditions_are_a_note(vae, config):
    vae("train", "--config", config, "--max-images", "50")
    (run,) = list_runs(Path("runs"))
    there = load_checkpoint(run.last)
    save_checkpoint(run.last, replace(there, conditions=there.conditions | {"torch": "2.0"}))
    code, _, err = vae("train", "--resume", run.name)
    assert code == 0
    assert f"vae: {run.name}: may not end in the same bits as an uncut run: torch 2.0 before" in err


def on_a_terminal(tmp_path: Path, *arguments: object) -> tuple[int, str]:
    """Runs a command whose stderr is a terminal; returns its exit code and what it showed there."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "160", "TERM": "xterm"}
    command = [sys.executable, "-m", "vaecli", *map(str, arguments)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    return process.returncode, shown.decode()


def test_on_a_terminal_long_work_shows_a_bar(config, tmp_path):
    code, shown = on_a_terminal(tmp_path, "train", "--config", config, "training.epochs=3", "training.batch_size=1")
    assert code == 0
    assert "epoch 2/3" in shown
    assert re.search(r"ELBO -\d+\.\d\d = -\d+\.\d\d - \d+\.\d\d nats +[\d,]+ images/s +\d:\d\d left", shown)
    (run,) = list_runs(tmp_path / "runs")
    code, shown = on_a_terminal(tmp_path, "evaluate", "--ckpt", run.path, "--k", 50)
    assert code == 0
    assert "importance sampling" in shown
    assert "100%" in shown


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("train", "--config", "bernoulli", "--epochs", "3"), "Settings go as KEY=VALUE: training.epochs=3"),
        (("train", "--config", "bernoulli", "--lr", "1"), "KEY=VALUE: optimizer.learning_rate=1"),
        (("compare-decoders", "--batch-size=9"), "KEY=VALUE: training.batch_size=9"),
        (("evaluate", "--ckpt", "x", "--split", "tset"), "Did you mean test?"),
        (("encode", "--ckpt", "x", "--split", "valid"), "Did you mean validation?"),
        (("runs", "ls", "--sort", "elb"), "Did you mean elbo?"),
        (("runs", "ls", "--sort", "zzz"), "'zzz' is not one of 'time', 'elbo'. ╰"),
        (("runs", "ls", "--where", "decoder=gaussian"), "did you mean model.decoder?"),
        (("compare-decoders", "--decoders", "gausian"), "did you mean gaussian?"),
        (("compare-decoders", "--decoders", "zzz"), "known: bernoulli, gaussian, "),
        (("train", "--config", "bernouli"), "did you mean bernoulli?"),
        (("train", "--config", "bernoulli", "data.name=fashon-mnist"), "did you mean fashion-mnist?"),
        (("train", "--config", "bernoulli", "epoch=3"), "did you mean training.epochs?"),
        (("trian",), "No such command 'trian'. Did you mean 'train'? ╰"),
    ],
)
def test_an_option_or_a_value_that_does_not_exist_is_answered_with_what_would_be_right(vae, arguments, hint):
    code, out, err = vae(*arguments)
    assert (code, out) == (2, "")
    assert hint in " ".join(err.replace("│", " ").split())
    assert "Value error" not in err


def test_a_reader_that_has_read_enough_gets_no_message(tmp_path):
    assert run_in_shell("vae configs cat bernoulli | true", tmp_path).stderr == ""


def run_in_shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = command.replace("vae ", f"{sys.executable} -m vaecli ")
    return subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_cannot_be_printed_is_one_message(trained, tmp_path):
    done = run_in_shell("vae runs ls > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "vae: stdout cannot be written: No space left on device\n")


@pytest.mark.parametrize("stderr", ["2>&-", "2> /dev/full"])
def test_a_lost_terminal_loses_no_run(config, tmp_path, stderr):
    """What would be printed there goes nowhere, and not to stdout either."""
    done = run_in_shell(f"vae train --config {config} data.binarize=none {stderr}", tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert load_run(tmp_path / done.stdout.strip()).status["state"] == "completed"


def test_the_package_lists_its_api_and_nothing_else():
    code = "import vaecli; vaecli.load_config; print([n for n in dir(vaecli) if n[0] != '_'] == sorted(vaecli.__all__))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"

import builtins
import errno
import io
import json
import os
import pty
import re
import shlex
import shutil
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
from vaecli.config.json_schema import SCHEMA_FILE, schema_text
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
        "explore",
        "runs ls",
        "runs show",
        "configs ls",
        "configs cat",
        "configs cp",
        "configs schema",
        "validate",
        "explain",
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


def test_a_dry_run_says_what_a_run_would_take_and_makes_none(vae, config, tmp_path):
    code, out, err = vae("train", "--config", config, "--dry-run")
    assert (code, err) == (0, "")
    assert "steps       10: 2 epochs of 5" in out
    assert "parameters: encoder " in out
    assert not (tmp_path / "runs").exists()
    assert json.loads(vae("train", "--config", config, "--dry-run", "--json")[1])["steps"] == 10
    assert vae("train", "--resume", "x", "--dry-run")[0] == 2


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
    assert (code, err.splitlines()[-1].startswith("the evidence: ")) == (0, True)
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
        (("--bracket",), "--bracket goes with --method ais, not with --method importance: leave it out"),
        (("--chains", 9), "--chains goes with --method ais or --method posterior, not with --method importance"),
        (("--calibration", "--split", "train"), "or --gaps, not with --calibration: leave it out"),
        (("--calibration", "--k", 50), "--k goes with --method importance, not with --calibration: leave it out"),
        (("--calibration", "--proposal", "encoder"), "--proposal goes with --method importance, not with"),
        (("--gaps", "--no-binarised"), "--binarised goes with --method importance, not with --gaps: leave it out"),
    ):
        code, out, err = vae("evaluate", "--ckpt", trained, *arguments)
        assert (code, out) == (2, "")
        assert what in err


def test_every_kind_of_evaluation_says_that_a_bound_is_relaxed(vae, config):
    """It is that of a Bernoulli on grey images."""
    _, run, _ = vae("train", "--config", config, "data.binarize=none", "--quiet")
    quick = ("--temperatures", 2, "--chains", 2)
    for kind in ((), ("--gaps",), ("--calibration",), ("--method", "ais", *quick), ("--method", "posterior", *quick)):
        arguments = ("evaluate", "--ckpt", run.strip(), "--limit", 100 if kind == ("--calibration",) else 2, *kind)
        code, out, _ = vae(*arguments, "--quiet")
        assert (code, "(relaxed, not a likelihood)" in out.splitlines()[0]) == (0, True)
        assert json.loads(vae(*arguments, "--json")[1])["caveat"] == "relaxed, not a likelihood"


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


def test_validate_says_all_that_is_wrong_of_every_file(vae, tmp_path):
    (tmp_path / "bad.yaml").write_text("model:\n  latnet_dim: 3\nseed: -1\n")
    (tmp_path / "sizes.yaml").write_text("grid:\n  model.latent_dim: [2, 0]\n")
    (tmp_path / "good.yaml").write_text("base: bernoulli\ngrid: {seed: [0, 1]}\n")
    code, out, _ = vae("validate", "bernoulli", "bad.yaml", "sizes.yaml", "good.yaml")
    assert code == 2
    assert out.splitlines() == [
        "bernoulli: right",
        "bad.yaml: 2 errors",
        "  bad.yaml:2: model.latnet_dim: unknown key; did you mean model.latent_dim?",
        "  bad.yaml:3: seed: must be greater than or equal to 0, not -1",
        "sizes.yaml: 1 error",
        "  sizes.yaml: model.latent_dim=0: model.latent_dim: must be greater than or equal to 1, not 0",
        "good.yaml: right",
    ]
    code, out, err = vae("validate", "good.yaml", "bernoulli", "--json")
    assert (code, err) == (0, "")
    assert [(found["kind"], found["right"]) for found in json.loads(out)["files"]] == [
        ("sweep", True),
        ("config", True),
    ]
    assert "relaxed, not a likelihood" in vae("validate", "tutorial")[2]
    assert "no such config" in vae("validate", "nothing.yaml")[1]


def test_configs(vae):
    assert "bernoulli" in vae("configs", "ls")[1]
    assert vae("configs", "cat", "tutorial")[1].startswith("# vae train --config tutorial.yaml")
    assert vae("configs", "cp", "bernoulli", "mine.yaml")[1] == "mine.yaml\n"
    code, _, err = vae("configs", "cp", "bernoulli", "mine.yaml")
    assert code == 2
    assert "exists already" in err
    assert vae("configs", "cat", "bernouli")[0] == 2
    assert vae("configs", "schema")[1] == schema_text() == Path(SCHEMA_FILE).read_text()


def test_commands_that_are_printed_can_be_copied(vae, config, faces):
    """Whatever letters of a shell are in their paths."""
    name = "a;b $(c) 'd' [e]&.yaml"
    _, out, err = vae("configs", "cp", config, name)
    copied = shlex.split(err.partition("run it with: ")[2])
    assert copied == ["vae", "train", "--config", name] == ["vae", "train", "--config", out.rstrip("\n")]
    code, out, _ = vae(*copied[1:], "--runs-dir", "some $runs", "-q")
    assert (code, Path(out).parent.name) == (0, "a-b-c-d-e")
    code, _, err = vae("train", "--resume", out.strip(), "training.epochs=3")
    assert code == 2
    code, _, err = vae(*shlex.split(err.partition("from its weights: ")[2])[1:], "--runs-dir", "more", "-q")
    assert (code, err) == (0, "")


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


def on_a_terminal(tmp_path: Path, *arguments: object, columns: int = 160) -> tuple[int, str]:
    """Runs a command whose stderr is a terminal; returns its exit code and what it showed there."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
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
    assert "the evidence" in shown
    assert "100%" in shown


def test_names_are_shown_on_a_terminal_as_they_are(config, faces, tmp_path):
    """They may look like rich's markup, or its emoji."""
    name = "x [/b] [red]:smile:.npz"
    (tmp_path / name).parent.mkdir()
    shutil.copy(faces, tmp_path / name)
    values = {
        "base": str(config), "grid": {"data.name": [str(faces), str(tmp_path / name)]},
        "evaluation": {"k": 2, "binarised": False},
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))
    code, shown = on_a_terminal(tmp_path, "sweep", "s.yaml", columns=1000)
    assert code == 0
    assert re.search(r"running +name .*" + re.escape(name), shown)
    assert re.search(r"2/2  name .*" + re.escape(name) + r": ELBO", shown)
    code, shown = on_a_terminal(tmp_path, "train", "--config", config, f"data.name={tmp_path}/[/b].npz")
    assert code == 3
    assert "[/b].npz: no such file" in shown


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
@pytest.mark.parametrize("command", ["runs ls", "--help", "train --help", "--version", "configs cat bernoulli"])
def test_a_result_that_cannot_be_printed_is_one_message(trained, tmp_path, command):
    done = run_in_shell(f"vae {command} > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "vae: stdout cannot be written: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_results_are_printed_whatever_stdout_has_letters_for(trained, tmp_path, encoding):
    command = [sys.executable, "-m", "vaecli", "evaluate", "--ckpt", str(trained), "--k", "2", "--no-binarised", "-q"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    sign = b"\\xb1" if encoding == "ascii" else "±".encode(encoding)
    assert re.search(rb"ELBO +-\d+\.\d\d " + re.escape(sign), done.stdout)


def test_a_folder_whose_name_is_not_utf8_can_hold_runs_and_no_data(config, faces, tmp_path):
    """The path is printed as the bytes that it is; no config can hold one, nor can TensorBoard."""
    folder = tmp_path / os.fsdecode(b"bad\xff")
    folder.mkdir()
    shutil.copy(faces, folder / "faces.npz")
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}  # which takes no such path by itself

    def run(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "vaecli", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, env=environment, check=False)

    done = run("train", "-q", "--config", config, "--runs-dir", folder / "runs")
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path(os.fsdecode(done.stdout.rstrip(b"\n"))).is_dir()
    comparing = ("compare-decoders", "-q", "--config", config, "--decoders", "bernoulli", "--seeds", "1", "--k", "2")
    done = run(*comparing, "--runs-dir", folder / "runs")
    assert (done.returncode, done.stderr) == (0, b"")
    assert Path(os.fsdecode(done.stdout.rstrip(b"\n"))).is_file()
    done = run("train", "--config", config, "data.name=faces.npz")
    assert done.returncode == 2
    assert b"data.name: must be a path in UTF-8 without NUL; rename the file, or its folder" in done.stderr


LONG = "x" * 300


@pytest.mark.parametrize("name", [LONG, "x" * 999, f"a/{LONG}"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("train --config NAME", 2), ("train --config CONFIG data.name=NAME.npy", 3), ("train --resume NAME", 2),
        ("train --config CONFIG --init-from NAME", 2), ("train --config CONFIG --runs-dir NAME", 1),
        ("train --config CONFIG data.name=kmnist --data-dir NAME", 3), ("train --config CONFIG name=NAME", 2),
        ("evaluate --ckpt NAME", 2), ("runs show NAME", 2), ("runs diff NAME NAME", 2), ("sweep NAME.yaml", 2),
        ("configs cat NAME", 2), ("configs cp bernoulli NAME", 2), ("sample --ckpt x --out NAME/x.png", 2),
        ("compare-decoders --config CONFIG --out NAME", 1), ("runs ls --runs-dir NAME", 0),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_one_is_answered_in_one_message(vae, config, monkeypatch, name, command, code):
    given, out, err = vae(*(word.replace("NAME", name).replace("CONFIG", str(config)) for word in command.split()))
    assert given == code
    assert out == ""
    assert len(err.splitlines()) == 1


def test_a_nul_in_a_path_of_a_config_is_said_with_its_line(vae, tmp_path):
    (tmp_path / "a.yaml").write_text('seed: 1\ndata: {name: "a\\0.npy"}\n')
    code, _, err = vae("train", "--config", "a.yaml")
    assert code == 2
    assert err.startswith("vae: a.yaml:2: data.name: must be a path in UTF-8 without NUL")
    (tmp_path / "s.yaml").write_text('base: "a\\0"\ngrid: {seed: [1]}\n')
    assert vae("sweep", "s.yaml")[0] == 2


@pytest.fixture
def hidden(tmp_path, monkeypatch):
    """Makes a path one that only its owner may look into, whoever runs the tests."""

    def hide(path: Path) -> None:
        def refuse_below(function, parents_only: bool):
            def refusing(target, *rest, **more):
                if not isinstance(target, int):
                    absolute = Path.cwd() / os.fsdecode(target)
                    if path in absolute.parents or (absolute == path and not parents_only):
                        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
                return function(target, *rest, **more)

            return refusing

        for module, name in (
            (os, "stat"),
            (os, "lstat"),
            (os, "mkdir"),
            (os, "open"),
            (os, "listdir"),
            (io, "open"),
            (builtins, "open"),
        ):
            monkeypatch.setattr(module, name, refuse_below(getattr(module, name), name in {"stat", "lstat"}))

    return hide


def test_paths_that_we_are_not_let_look_at_are_said_to_be_such(vae, config, trained, tmp_path, hidden):
    for name in ("a.yaml", "a.npy", "run"):
        (tmp_path / "closed" / name).mkdir(parents=True)
    hidden(tmp_path / "closed")
    inside = tmp_path / "closed" / "run"
    for arguments, code in (
        (("train", "--config", tmp_path / "closed" / "a.yaml"), 2),
        (("train", "--config", config, f"data.name={tmp_path}/closed/a.npy"), 3),
        (("train", "--config", config, "data.name=kmnist", "--data-dir", tmp_path / "closed"), 3),
        (("train", "--config", config, "--runs-dir", tmp_path / "closed"), 1),
        (("train", "--config", config, "--runs-dir", inside), 1),
        (("train", "--resume", inside), 2),
        (("train", "--config", config, "--init-from", inside), 2),
        (("evaluate", "--ckpt", inside), 2),
        (("runs", "show", inside), 2),
        (("runs", "ls", "--runs-dir", tmp_path / "closed"), 2),
        (("sweep", tmp_path / "closed" / "a.yaml"), 2),
        (("configs", "cp", "bernoulli", tmp_path / "closed"), 2),
        (("sample", "--ckpt", trained, "--out", inside / "x.png"), 1),
        (("compare-decoders", "--config", config, "--out", inside), 1),
    ):
        given, out, err = vae(*arguments)
        assert (given, out) == (code, ""), arguments
        assert len(err.splitlines()) == 1
        assert "Permission denied" in err


def test_a_run_that_cannot_be_read_is_a_line_of_the_listing_that_says_why(vae, config, trained, tmp_path, hidden):
    for group in ("closed", "small"):
        shutil.copytree(trained, tmp_path / "runs" / group / "20200101-000000-bernoulli-s0")
    broken = tmp_path / "runs" / "small" / "20200102-000000-bernoulli-s0"
    shutil.copytree(trained, broken)
    (broken / "status.json").write_text('{"state": "run')
    hidden(tmp_path / "runs" / "closed")
    hidden(tmp_path / "runs" / "small" / "20200101-000000-bernoulli-s0")
    code, out, _ = vae("runs", "ls")
    lines = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert code == 0
    assert lines.keys() == {
        "runs/closed", "small/20200101-000000-bernoulli-s0", "small/20200102-000000-bernoulli-s0",
        f"small/{trained.name}",
    }  # fmt: skip
    assert lines["runs/closed"].endswith("  status.json: Permission denied")
    assert lines["small/20200101-000000-bernoulli-s0"].endswith("  status.json: Permission denied")
    assert lines["small/20200102-000000-bernoulli-s0"].endswith("  status.json: is damaged")
    assert [run["state"] for run in json.loads(vae("runs", "ls", "--json")[1])["runs"]].count("unreadable") == 3
    assert vae("runs", "ls", "--where", "seed=0")[0] == 0
    comparing = ("compare-decoders", "-q", "--config", config, "--decoders", "bernoulli", "--seeds", 1, "--k", 2)
    assert vae(*comparing)[0] == 0
    assert vae("runs", "show", trained.name)[0] == 0


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

"""`make bench`: how long an epoch takes, beside its floor and its peers, all measured in turn in one sitting.

Every contender runs in a process of its own and sleeps while the others are measured; a round is one epoch of each.
What is compared are ratios within a round; shown is their median, with the smallest and the largest. A round in which
other programs used the processor is useless: it is left out, said to be, and made once more.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from contenders import BEFORE, PEERS, PIXELS, Work, multiply_adds
from replicates import replicates

HERE = Path(__file__).parent
OUTSIDE = 0.1
"""The share of the processor that others may use while a contender is measured."""
GROWTH = (100_000, 1_000_000, 10_000_000)
SAMPLES, HIDDEN = (1, 5, 20), (200, 500, 1000, 2000)
OF_SIZES, BASE = 12_000, "H=500, M=100, L=1"
FIRST_STEP = """
from tempfile import TemporaryDirectory
from vaecli import load_config, train

class Done(BaseException): pass

def stop():
    raise Done

with TemporaryDirectory() as directory:
    try:
        train(load_config("bernoulli", ["training.compile=off"]), runs_dir=directory, stop=stop)
    except Done:
        pass
"""


class Contender:
    """A contender's process."""

    def __init__(self, name: str, work: Work) -> None:
        self.peak_mib = 0.0
        command = [sys.executable, str(HERE / "worker.py"), name, json.dumps(asdict(work))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.error: str | None = self._answer().get("error")

    def epoch(self) -> tuple[float, float]:
        """Do one epoch; its seconds, and the share of the processor that others used meanwhile."""
        assert self._process.stdin is not None
        before = _busy(), self._used()
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        others = _busy() - before[0] - (self._used() - before[1])
        self.peak_mib = answer["peak_mib"]
        return float(answer["seconds"]), others / (answer["seconds"] * (os.cpu_count() or 1))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _used(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        _, errors = self._process.communicate()
        return {"error": (errors.strip().splitlines() or ["ended without a word"])[-1][:100]}


def _busy() -> float:
    """Seconds of all processors since the start that were not idle, those that a host took away among them."""
    times = psutil.cpu_times()
    return sum(times) - sum(getattr(times, kind, 0.0) for kind in ("idle", "iowait", "guest", "guest_nice"))


def in_turn(members: dict[str, tuple[str, Work]], rounds: int) -> dict[str, dict[str, Any]]:
    """Measure contenders in turn, by their labels: seconds of each round, peak memory, or the error."""
    contenders = {label: Contender(name, work) for label, (name, work) in members.items()}
    able = {label: contender for label, contender in contenders.items() if contender.error is None}
    try:
        quiet: list[dict[str, float]] = []
        disturbed: list[dict[str, float]] = []
        while len(quiet) < rounds and len(disturbed) < rounds:
            epochs = {label: contender.epoch() for label, contender in able.items()}
            is_quiet = max((others for _, others in epochs.values()), default=0) <= OUTSIDE
            (quiet if is_quiet else disturbed).append({label: seconds for label, (seconds, _) in epochs.items()})
        if disturbed:
            kept = "left out" if len(quiet) == rounds else "among the figures: the machine is not quiet"
            print(f"\n{len(disturbed)} rounds in which others used the processor, {kept}")
        counted = quiet if len(quiet) == rounds else quiet + disturbed
        return {
            label: {
                "seconds": [seconds[label] for seconds in counted if label in seconds],
                "peak_mib": contender.peak_mib,
                "error": contender.error,
            }
            for label, contender in contenders.items()
        }
    finally:
        for contender in contenders.values():
            contender.close()


def ratios(measured: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest ratio within a round."""
    found = [a / b for a, b in zip(measured, reference, strict=True)]
    return statistics.median(found), min(found), max(found)


def peers(device: str, rounds: int) -> dict[str, Any]:
    """vaecli beside the others and beside its floor, on the whole of MNIST."""
    work = Work(device=device)
    results = in_turn({name: (name, work) for name in PEERS}, rounds)
    print(f"\nAn epoch of {work.n:,} images, H={work.hidden}, Z={work.latent}, M={work.batch}, L={work.samples}\n")
    print("| within a round | / JAX scan | / pythae | / DataLoader |\n|---|---|---|---|")
    for ours in ("vaecli", "vaecli, eager", BEFORE):
        print(
            f"| {ours} | {' | '.join(_ratio(results, ours, other) for other in ('JAX scan', 'pythae', 'DataLoader'))} |"
        )
    print("\n| | s/epoch | / (floor + Adam) | peak MiB |\n|---|---|---|---|")
    for name, found in results.items():
        if found["error"]:
            print(f"| {name} | {found['error']} | | |")
            continue
        seconds = statistics.median(found["seconds"])
        print(f"| {name} | {seconds:.2f} | {_ratio(results, name, 'floor + Adam')} | {found['peak_mib']:.0f} |")
    flops = 2 * multiply_adds(work) * work.steps
    for name in ("floor, torch", "floor, oneDNN"):
        if not results[name]["error"]:
            print(f"{name}: {flops / statistics.median(results[name]['seconds']) / 1e9:.0f} GFLOP/s")
    if device == "cpu":
        print(_peak())
    return results


def _ratio(results: dict[str, Any], one: str, other: str) -> str:
    """Say the median ratio within a round, and its range."""
    if results[one]["error"] or results[other]["error"]:
        return "-"
    middle, low, high = ratios(results[one]["seconds"], results[other]["seconds"])
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _peak() -> str:
    """Say what the processor can do at most: cores, times operations of its vector units in a cycle, times cycles."""
    import torch

    capability, cores = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    width = {"AVX512": 64, "AVX2": 32}.get(capability)
    frequency = psutil.cpu_freq()
    if width is None or frequency is None:
        return f"peak: not known for {capability}"
    clock = frequency.current / 1e3
    peak = cores * width * clock
    return f"peak: {cores} cores x {width} ({capability}) x {clock:.1f} GHz (nominal) = {peak:.0f} GFLOP/s"


def jobs(rounds: int) -> dict[str, list[float]]:
    """Seconds from the command to the trained default model: 40 epochs of 50,000 images, one process after another.

    vaecli also validates every epoch, and writes curves, pictures and checkpoints; the others train and no more. It
    compiles its step as if for the first time. The slow ones run once.
    """
    train = [sys.executable, "-m", "vaecli", "train", "--config", "bernoulli", "--quiet"]
    other = [sys.executable, str(HERE / "worker.py"), "--epochs", "40"]
    work = json.dumps(asdict(Work(n=50_000)))
    commands = {
        "JAX scan": [*other, "JAX scan", work],
        "vaecli": train,
        BEFORE: [*train, "training.products=torch", "training.compile=off"],
        "pythae": [*other, "pythae", work],
        "DataLoader": [*other, "DataLoader", work],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(rounds):
        for name, command in commands.items():
            if i > 0 and name in {"pythae", "DataLoader"}:
                continue
            with TemporaryDirectory() as directory:
                cold = os.environ | {"TORCHINDUCTOR_CACHE_DIR": directory}
                began = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=directory, env=cold)
                found[name].append(time.perf_counter() - began)
                print(f"{name}: {found[name][-1]:.1f} s", flush=True)
    print("\n| from the command to the trained model | s | / JAX scan | / " + BEFORE + " |\n|---|---|---|---|")
    for name, seconds in found.items():
        by_jax, by_before = (ratios(seconds, found[other][: len(seconds)]) for other in ("JAX scan", BEFORE))
        shown = " | ".join(f"{middle:.2f} ({low:.2f}–{high:.2f})" for middle, low, high in (by_jax, by_before))
        print(f"| {name} | {statistics.median(seconds):.1f} | {shown} |")
    return found


def sizes(device: str, rounds: int) -> dict[str, Any]:
    """vaecli beside its floor, over L, M and H; and every decoder beside the Bernoulli."""
    from vaecli.config.likelihoods import LIKELIHOODS

    found: dict[str, Any] = {}
    variants = [
        *(("L", {"samples": n}) for n in SAMPLES[1:]),
        *(("M", {"batch": n}) for n in (20, 1000)),
        *(("H", {"hidden": n}) for n in HIDDEN if n != Work.hidden),
    ]
    print(f"\nvaecli / (floor + Adam), {OF_SIZES:,} images\n\n| | ratio | range |\n|---|---|---|")
    for axis, change in [("", {}), *variants]:
        work = Work(n=OF_SIZES, device=device, **change)
        label = f"{axis}={next(iter(change.values()))}" if change else BASE
        result = in_turn({"floor": ("floor + Adam", work), "vaecli": ("vaecli", work)}, rounds)
        found[label] = result
        middle, low, high = ratios(result["vaecli"]["seconds"], result["floor"]["seconds"])
        print(f"| {label} | {middle:.2f} | {low:.2f}–{high:.2f} |", flush=True)
    works = {name: Work(n=OF_SIZES, device=device, decoder=name) for name in LIKELIHOODS}
    result = found["decoders"] = in_turn(
        {f"{ours} {name}": (ours, work) for name, work in works.items() for ours in ("vaecli", "vaecli, eager")}, rounds
    )
    print(f"\n{OF_SIZES:,} images\n\n| | / bernoulli | compiled / eager |\n|---|---|---|")
    for name in LIKELIHOODS:
        compiled, eager = f"vaecli {name}", f"vaecli, eager {name}"
        print(f"| {name} | {_ratio(result, compiled, 'vaecli bernoulli')} | {_ratio(result, compiled, eager)} |")
    return found


def evaluation(rounds: int) -> dict[str, Any]:
    """Time importance weights beside the bare matrix products of the decoder."""
    work = Work(n=100, samples=1000)
    found = in_turn({name: (name, work) for name in ("importance floor", "importance")}, rounds)
    middle, low, high = ratios(found["importance floor"]["seconds"], found["importance"]["seconds"])
    print(f"\nImportance weights, k = 1000: {middle:.2f} ({low:.2f}–{high:.2f}) of the bare products' throughput")
    return found


def growth(rounds: int) -> dict[str, list[float]]:
    """Microseconds of training for an image, of ever more images in a file."""
    from vaecli.config.loading import load_config
    from vaecli.errors import LimitReachedError
    from vaecli.runs.checkpoint import load_checkpoint
    from vaecli.runs.run import list_runs
    from vaecli.training.loop import train
    from vaecli.training.stopping import Limit

    found: dict[str, list[float]] = {f"{n:,}": [] for n in GROWTH}
    with TemporaryDirectory() as directory:
        for n in GROWTH:
            pixels = np.lib.format.open_memmap(f"{directory}/{n}.npy", "w+", np.uint8, (n, 28, 28))
            pixels[:: n // 1000].reshape(-1, PIXELS)[:, ::3] = 200
        for _ in range(rounds):
            for n in GROWTH:
                settings = [f"data.name={directory}/{n}.npy", "data.test=0", "data.validation=0"]
                settings += ["device=cpu", "training.compile=off"]  # which would not pay for so few steps
                with suppress(LimitReachedError):
                    train(load_config(None, settings), runs_dir=f"{directory}/runs", limit=Limit(images=20_000))
                progress = load_checkpoint(list_runs(Path(directory) / "runs")[-1].last).progress
                found[f"{n:,}"].append(1e6 * progress.seconds / progress.images)
    print("\n| images | µs per image | range |\n|---|---|---|")
    for name, micros in found.items():
        print(f"| {name} | {statistics.median(micros):.0f} | {min(micros):.0f}–{max(micros):.0f} |")
    return found


def start_up(rounds: int) -> dict[str, list[float]]:
    """Seconds from the command to `--help`, and to the first training step."""
    commands = {
        "vae --help": [sys.executable, "-m", "vaecli", "--help"],
        "first step": [sys.executable, "-c", FIRST_STEP],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            found[name].append(time.perf_counter() - began)
    print("\n| from the command to | s | range |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f}–{max(seconds):.2f} |")
    return found


def machine() -> dict[str, Any]:
    """Where it was measured."""
    import torch

    from vaecli.devices import describe

    packages = {}
    for name in ("vaecli", "torch", "jax", "pythae", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": describe(torch.device("cpu")), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "cuda": cuda, "python": platform.python_version(), **packages,
    }  # fmt: skip


def plot_growth(sizes: dict[str, Any], growth: dict[str, list[float]], path: Path) -> None:
    """Microseconds of training for an image over N, L and H, and of the bare products."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    over_n, over_l, over_h = figure.subplots(1, 3)
    middles = [statistics.median(micros) for micros in growth.values()]
    over_n.plot(GROWTH, middles, "o-", color="#2a6fdb", label="vaecli")
    over_n.set(xscale="log", ylim=(0, 1.5 * max(middles)), xlabel="images N", ylabel="µs for an image")
    for axis, name, values in ((over_l, "L", SAMPLES), (over_h, "H", HIDDEN)):
        for which, colour in (("vaecli", "#2a6fdb"), ("floor", "#b0b7c3")):
            found = [sizes.get(f"{name}={value}", sizes[BASE])[which]["seconds"] for value in values]
            micros = [1e6 * statistics.median(seconds) / OF_SIZES for seconds in found]
            axis.plot(values, micros, "o-", color=colour, label=which)
        axis.set(xscale="log", yscale="log", xticks=values, xticklabels=values)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda micros, _: f"{micros:g}"))
        axis.minorticks_off()
        axis.legend(frameon=False)
    over_l.set_xlabel("samples L")
    over_h.set_xlabel("hidden units H")
    for axis in (over_n, over_l, over_h):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw the peers' epochs as bars."""
    from matplotlib.figure import Figure

    shown = {name: statistics.median(r["seconds"]) for name, r in results.items() if not r["error"]}
    figure = Figure(figsize=(7, 0.45 * len(shown) + 1), layout="constrained")
    axis = figure.subplots()
    colours = [
        "#b0b7c3" if name.startswith("floor") else "#2a6fdb" if name.startswith("vaecli") else "#e2a05a"
        for name in shown
    ]
    bars = axis.barh(list(shown), list(shown.values()), color=colours)
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.set_xlabel("seconds for an epoch of 60,000 images, median")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    """Measure, print, and write bench.json, bench.svg and, after a whole bench, growth.svg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--only", choices=["peers", "sizes", "jobs", "evaluation", "replicates", "growth", "start-up"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine()}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items() if value is not None))
    wanted = arguments.only
    if wanted in {None, "peers"}:
        results["peers"] = peers(arguments.device, arguments.rounds)
        plot(results["peers"], arguments.out / "bench.svg")
    if wanted in {None, "jobs"}:
        results["jobs"] = jobs(max(3, arguments.rounds // 2))
    if wanted in {None, "sizes"}:
        results["sizes"] = sizes(arguments.device, max(3, arguments.rounds // 2))
    if wanted in {None, "evaluation"}:
        results["evaluation"] = evaluation(arguments.rounds)
    if wanted in {None, "replicates"}:
        results["replicates"] = replicates(arguments.device, arguments.rounds)
    if wanted in {None, "growth"}:
        results["growth"] = growth(max(3, arguments.rounds // 2))
    if wanted in {None, "start-up"}:
        results["start-up"] = start_up(arguments.rounds)
    if "growth" in results and "sizes" in results:
        plot_growth(results["sizes"], results["growth"], arguments.out / "growth.svg")
    (arguments.out / "bench.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{arguments.out}/bench.json")


if __name__ == "__main__":
    main()

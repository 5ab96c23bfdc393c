"""Everything that a run leaves behind, but for the clock's part in it."""

import json
from typing import Any

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vaecli.config.loading import load_config
from vaecli.runs.checkpoint import load_checkpoint
from vaecli.runs.run import Run

CLOCK = {"seconds", "updated"}


def traces(run: Run) -> dict[str, Any]:
    """What must be equal, to the last bit, between an uncut run and one that was cut and resumed."""
    status = json.loads((run.path / "status.json").read_text())
    return {
        "last": checkpoint(run.last),
        "best": checkpoint(run.best) if run.best.exists() else None,
        "metrics": [{key: value for key, value in row.items() if key not in CLOCK} for row in run.metrics],
        "status": {key: value for key, value in status.items() if key not in CLOCK},
        "config": load_config(run.path / "config.yaml"),
        "tensorboard": {split: events(run.path / "tensorboard" / split) for split in ("train", "validation")},
        "files": {
            str(path.relative_to(run.path)): path.read_bytes()
            for folder in ("samples", "tensorboard")
            for path in sorted((run.path / folder).rglob("*"))
            if path.is_file() and "tfevents" not in path.name
        },
    }


def checkpoint(path) -> dict[str, Any]:
    """The content of a checkpoint, tensors as bytes; not whose it is, nor what tells of the clock."""
    content = vars(load_checkpoint(path)).copy()
    content["progress"] = {k: v for k, v in vars(content["progress"]).items() if k not in CLOCK}
    del content["logs"], content["digest"], content["run_id"]
    return _plain(content)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def events(directory) -> list[bytes]:
    """The events of a TensorBoard directory, each whole, without the time at which it was written."""
    (path,) = directory.glob("*tfevents*")
    found = []
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        event.wall_time = 0
        for value in event.summary.value:  # a table within is written in any order
            data = value.metadata.plugin_data
            if data.plugin_name == "hparams":
                data.content = HParamsPluginData.FromString(data.content).SerializeToString(deterministic=True)
        found.append(event.SerializeToString(deterministic=True))
    return found


def check_whole(run: Run) -> None:
    """Every file that a run replaces is absent or whole at this instant."""
    for path in run.path.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix == ".pt":
            load_checkpoint(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            load_config(path)
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()

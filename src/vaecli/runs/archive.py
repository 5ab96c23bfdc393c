"""Reading archives of tensors that may be anybody's: nothing in them is executed, and none is larger than its file."""

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MAX_PICKLE = 10_000_000
"""Bytes of an archive that are not tensors; a checkpoint with a large config has some thousands."""
_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch LongStorage",
    "torch ByteStorage",
}
_IMPORTING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BUILD"}
"""What a pickle may name, and the opcodes that no checkpoint has."""


def unpack(content: bytes) -> Any:
    """Return the value of which `torch.save` made these bytes: tensors, numbers and strings, in dictionaries and lists.

    Raises:
        UnpicklingError: They hold anything else.
        Exception: They are damaged, for which zipfile, pickle and torch share no error.
    """
    _check(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's guesses at what a damaged file may be
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    _check_sizes(value)
    return value


def _check(content: bytes) -> None:
    """Check for a plain archive of tensors before torch reads it: nothing packed, nothing to be called."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it has compressed parts")
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("its parts are larger than the file")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
            raise ValueError("it has no table of contents, or one of absurd size")
        for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
            if opcode.name in _IMPORTING or (opcode.name == "GLOBAL" and argument not in _NAMES):
                raise pickle.UnpicklingError(f"{opcode.name} {argument}")


def _check_sizes(value: object) -> None:
    """Check that every tensor is dense and has as many values as its shape says. Raises ValueError."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} has fewer values than that")
    elif isinstance(value, Mapping):
        for inner in value.values():
            _check_sizes(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_sizes(inner)

"""Reading archives of tensors that may be anybody's: nothing in them is executed, and none is larger than its file."""

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MAX_PICKLE = 10_000_000
"""Bytes of an archive that are not tensors; a checkpoint with a large config has some thousands."""
_READ = re.compile(r"data\.pkl|byteorder|version|data/\d+")
_LEFT_OUT = {".format_version", ".storage_alignment", ".data/serialization_id"}
"""The members of an archive, below its one folder: what is read, and what else torch writes."""
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
    plain = _repack(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's guesses at what a damaged file may be
        value = torch.load(plain, map_location="cpu", weights_only=True)
    _check_parts(value, set())
    return value


def _repack(content: bytes) -> io.BytesIO:
    """Return a new archive of the members that were checked: nothing packed, nothing to be called, nothing else.

    What torch reads is then what was checked. Of an archive by somebody else it might read other members: it looks for
    them by names without regard to case, and by a directory that zipfile may find elsewhere.
    """
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(plain, "w") as copy:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it has compressed parts")
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("its parts are larger than the file")
        names = [entry.filename.partition("/") for entry in entries]
        members = [name for _, _, name in names]
        known = all(name in _LEFT_OUT or _READ.fullmatch(name) for name in members)
        if not known or len({folder for folder, _, _ in names}) > 1 or len(set(members)) < len(members):
            raise ValueError("it has parts that no checkpoint has, or some twice")
        if "data.pkl" not in members:
            raise ValueError("it has no table of contents")
        for entry, name in zip(entries, members, strict=True):
            if name not in _LEFT_OUT:
                part = archive.read(entry)
                if name == "data.pkl":
                    _check_pickle(part)
                copy.writestr(f"archive/{name}", part)
    plain.seek(0)
    return plain


def _check_pickle(content: bytes) -> None:
    """Check that a table of contents names tensors and nothing else. Raises UnpicklingError, ValueError."""
    if len(content) > MAX_PICKLE:
        raise ValueError("it has a table of contents of absurd size")
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in _IMPORTING or (opcode.name == "GLOBAL" and argument not in _NAMES):
            raise pickle.UnpicklingError(f"{opcode.name} {argument}")


def _check_parts(value: object, seen: set[int]) -> None:
    """Check that every tensor is dense and as large as its shape says, and that nothing contains a part twice.

    A few lists that contain each other twice are as large as memory once they are written out. Raises ValueError.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} has fewer values than that")
    elif isinstance(value, Mapping | list | tuple) and value:
        if id(value) in seen:
            raise ValueError("a part is there twice")
        seen.add(id(value))
        for inner in value.values() if isinstance(value, Mapping) else value:
            _check_parts(inner, seen)

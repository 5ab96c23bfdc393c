"""The data sets by their names in a config."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
TORCHVISION = {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"} | {f"emnist-{s}": "EMNIST" for s in EMNIST_SPLITS}
"""torchvision's data sets, by our names."""
DATA_SETS = ("mnist", *TORCHVISION)
ARRAY = r"([^/]\.np[yz]|-ubyte(\.gz)?)$"
"""What `is_array` tells, as a pattern for JSON Schema."""


def is_array(name: str) -> bool:
    """Return whether the name of a data set is the path of an array: .npy, .npz, or IDX, which ends in -ubyte."""
    return Path(name).suffix in {".npy", ".npz"} or name.removesuffix(".gz").endswith("-ubyte")


def known_data(name: str) -> str:
    """Return a data set's name, or an array's absolute path: a run must find its images from any directory.

    Raises:
        ValueError: It is neither.
    """
    if is_array(name):
        path = str(Path(name).absolute())
        if "\0" in path or path != path.encode(errors="replace").decode():
            raise ValueError("Input should be a path in UTF-8 without NUL; rename the file, or its folder")
        return path
    if name not in DATA_SETS:
        raise ValueError(
            "Input should be the path of a .npy, .npz, -ubyte or -ubyte.gz file, "
            f"or one of {', '.join(map(repr, DATA_SETS))}"
        )
    return name


def _list_data_sets(schema: dict[str, Any]) -> None:
    """Say what a data set is: one of the names, or an array's path."""
    del schema["type"]
    schema["anyOf"] = [{"enum": list(DATA_SETS)}, {"type": "string", "pattern": ARRAY}]


DataSet = Annotated[str, AfterValidator(known_data), Field(json_schema_extra=_list_data_sets)]

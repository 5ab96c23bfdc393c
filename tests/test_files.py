import json
import multiprocessing
import os
import signal
import stat
from pathlib import Path

import pytest

from vaecli.files import (
    finite,
    remove_temporary_files,
    safe_name,
    write_atomically,
    write_directory,
    write_json,
    write_text,
)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "x"
    write_text(path, "one")
    write_text(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    write_text(path, "one")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_json_has_no_word_for_what_is_not_finite(tmp_path):
    write_json(tmp_path / "x", {"a": [1.5, float("nan")], "b": (float("inf"), "c")})
    assert json.loads((tmp_path / "x").read_text()) == {"a": [1.5, None], "b": [None, "c"]}
    assert finite(-float("inf")) is None


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_there_is_kept_where_it_is_not_to_be_overwritten(tmp_path, monkeypatch, links):
    def refuse(self, target):
        raise PermissionError("no hard links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "x"
    write_atomically(path, lambda file: file.write(b"one"), overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomically(path, lambda file: file.write(b"two"), overwrite=False)
    assert path.read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


NAMES = [
    ("my sweep", "my-sweep"), ("_x", "x"), ("Übersicht", "Übersicht"), ("U\u0308bersicht", "Übersicht"),
    ("日本", "日本"), ("हिन्दी", "हिन्दी"), (".hidden", "hidden"), ("a\nb", "a-b"), ("a/../b", "a-..-b"),
    ("a;b $c (1)", "a-b-c-1"), ("x" * 150, "x" * 100), ("日" * 100, "日" * 85), ("..", ""), ("-", ""), ("", ""),
    ("a\0\udcff[/b]<i>", "a-b-i"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name"), NAMES)
def test_any_text_becomes_a_name_that_can_be_a_folders(tmp_path, text, name):
    assert safe_name(text) == safe_name(name) == name
    if name:
        (tmp_path / name).mkdir()
        assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_and_directories_have_the_modes_that_the_umask_leaves_them(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "x")
        write_text(tmp_path / "file", "y")
        directory = write_directory(tmp_path, "directory", lambda path: (path / "inner").mkdir())
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "file", directory, directory / "inner")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o777 & ~umask]


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_killed_processes_left_is_removed_by_the_next_that_writes_there(tmp_path):
    (tmp_path / ".of-somebody-else.tmp").touch()
    for function, arguments in ((write_atomically, (tmp_path / "x",)), (write_directory, (tmp_path, "run"))):
        child = multiprocessing.get_context("spawn").Process(target=function, args=(*arguments, _die))
        child.start()
        child.join()
    assert len(list(tmp_path.iterdir())) == 2  # the second removed what the first had left
    write_text(tmp_path / "other", "x")
    assert {path.name for path in tmp_path.iterdir()} == {".of-somebody-else.tmp", "other"}


def test_what_is_being_written_is_not_removed(tmp_path):
    def write(file):
        file.write(b"whole")
        write_text(tmp_path / "other", "x")
        remove_temporary_files(tmp_path)

    write_atomically(tmp_path / "x", write)
    made = write_directory(tmp_path, "run", lambda path: write_text(path.parent / "other", "y"))
    assert (tmp_path / "x").read_text() == "whole"
    assert made.is_dir()


def test_a_name_as_long_as_the_system_takes_can_be_written(tmp_path):
    write_text(tmp_path / ("x" * 255), "x")
    assert (tmp_path / ("x" * 255)).read_text() == "x"


def test_a_text_with_a_path_that_is_not_utf8_can_be_written(tmp_path):
    write_text(tmp_path / "x", "bad\udcff")
    assert (tmp_path / "x").read_text() == "bad\\udcff"

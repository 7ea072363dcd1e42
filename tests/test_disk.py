"""Files whole or not at all, one run a folder, and systems that lack what Linux has."""

import builtins
import os
import sys

import pytest

from proxsae import Error, disk


@pytest.mark.parametrize("broken", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, step, broken):
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def fail(*_):
        raise broken

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(type(broken)):
            disk.replace_file(file, b"new")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"
    disk.replace_file(file, b"new")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"new"


def test_what_is_written_beside_appears_at_the_end_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "codes.npz"
    with pytest.raises(RuntimeError), disk.beside(target) as draft:  # noqa: PT012
        draft.write_bytes(b"half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with disk.beside(target) as draft:
        draft.write_bytes(b"whole")
        assert not target.exists()
    assert [f.name for f in target.parent.iterdir()] == ["codes.npz"]
    assert target.read_bytes() == b"whole"
    with pytest.raises(Error, match="a file is in the way"), disk.beside(target / "below"):
        pass


def test_a_line_is_added_whole(tmp_path):
    for line in (b"one", b"two"):
        disk.append_line(tmp_path / "journal", line)
    assert (tmp_path / "journal").read_bytes() == b"one\ntwo\n"
    with pytest.raises(Error, match=r"cannot write .*: Is a directory"):
        disk.append_line(tmp_path, b"three")


def test_only_a_regular_file_that_memory_holds_is_read(tmp_path, monkeypatch):
    file = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        disk.check_file(file)
    file.write_bytes(b"twelve bytes")
    assert disk.check_file(file) == 12
    monkeypatch.setattr(disk, "memory", lambda: 11.0)
    with pytest.raises(Error, match="has 12 bytes, which is more than the memory of this machine"):
        disk.check_file(file)
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(Error, match="is not a regular file"):
            disk.check_file(odd)


class Windows:
    """`msvcrt`, as far as a lock needs it: a byte of a file is locked once, whoever asks."""

    LK_NBLCK = 2
    locked: set[int]

    def __init__(self):
        self.locked = set()

    def locking(self, handle, mode, size):
        assert (mode, size) == (self.LK_NBLCK, 1)
        inode = os.fstat(handle).st_ino
        if inode in self.locked:
            raise PermissionError
        self.locked.add(inode)


def test_a_folder_is_held_where_there_is_no_fcntl(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "fcntl":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(sys.modules, "msvcrt", Windows())
    monkeypatch.setattr(disk, "WINDOWS", True)
    with disk.held(tmp_path / "run"):
        with pytest.raises(Error, match="is in use by another run"), disk.held(tmp_path / "run"):
            pass
        with disk.held(tmp_path / "another"):
            pass
    disk.replace_file(tmp_path / "run" / "file", b"content")  # flushes the names of a folder, which Windows cannot
    assert (tmp_path / "run" / "file").read_bytes() == b"content"


def test_a_disk_without_locks_is_one_sentence(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(disk, "_lock", refuse)
    said = r"cannot lock .*: No locks available; use a folder on a local disk"
    with pytest.raises(Error, match=said), disk.held(tmp_path / "run"):
        pass

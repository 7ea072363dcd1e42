"""The disk: files are written whole or not at all, one process holds a folder, and what is read is checked first.

A file is written beside its final name and then renamed, so that no reader ever sees half of one.  `replace_file` and
`replace_folder` also force it to the disk, for what must survive a kill; `write_files` and `beside` do not.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from proxsae.conventions import Error, library

CHUNK = 2**20  # bytes read at once, and so the most that a forged length can allocate
WINDOWS = os.name == "nt"  # where a folder cannot be opened
LOCK = ".proxsae-lock"  # what is locked there, in the folder

# What is written ------------------------------------------------------------------------------------------------------


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` of writing `path` into an `Error` of one sentence."""
    try:
        yield
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror
        # A failed move knows its destination; any other name may be a temporary one, unknown to the caller.
        msg = f"cannot write {error.filename2 or os.fspath(path)}: {reason}"
        raise Error(msg) from error


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise `Error` now if a file could not be written into `folder` later; leaves nothing behind."""
    with disk_errors(folder):
        home = Path(folder)
        while not home.is_dir():
            if home.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(home))
            home = home.parent
        with tempfile.TemporaryDirectory(dir=home, prefix=".proxsae-"):
            pass


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A path to write to, on the same disk, which is renamed to `target` at the end; `Error` where the disk refuses."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".proxsae-") as draft:
            yield Path(draft, target.name)
            os.replace(Path(draft, target.name), target)


def write_files(files: Mapping[str, bytes], folder: str | os.PathLike[str]) -> None:
    """Write files, by name or by subfolder/name, into `folder`, made if missing: all of them or none.

    Raises `Error` when the folder cannot be written.
    """
    with disk_errors(folder):
        target = Path(folder)
        # A new folder should not be left behind empty, so its draft lies beside it.  One that exists may be a
        # mount of its own, where nothing can be moved in from beside, so its draft lies inside.
        home = target if target.is_dir() else target.parent
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home, prefix=".proxsae-") as draft:
            for name, content in files.items():
                Path(draft, name).parent.mkdir(exist_ok=True)
                Path(draft, name).write_bytes(content)
            places = [target / name for name in files]
            for place in places:  # before the first is moved: all or none
                if place.is_dir():
                    raise _in_the_way(errno.EISDIR, place)
                if place.parent.exists() and not place.parent.is_dir():
                    raise _in_the_way(errno.EEXIST, place.parent)
            for name, place in zip(files, places, strict=True):
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(draft, name), place)


def _in_the_way(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path), None, str(path))  # named as by a move that failed


def replace_file(file: Path, content: bytes) -> None:
    """Write a file beside its name, force it to the disk, and rename it.  Raises `OSError`."""
    draft = file.with_name(f".{file.name}.part")
    try:
        draft.write_bytes(content)
        flush(draft)
        os.replace(draft, file)
        flush(file.parent)
    except BaseException:  # Ctrl-C too
        draft.unlink(missing_ok=True)
        raise


def replace_folder(folder: str | os.PathLike[str], files: dict[str, bytes], marker: str, hashed: bool = True) -> None:
    """Write the files, weights and then their description, as a new or empty folder, or into one that holds `marker`.

    A description that is not `hashed` goes first, so that a kill never leaves it beside weights of another save.
    Raises `Error` for what may not be replaced, and where writing fails, which leaves the old files as they were.
    """
    target = Path(folder)
    prefix = f".{target.name}-"
    try:
        new = not target.exists()
        if not (new or (target / marker).is_file() or (target.is_dir() and _empty(target, prefix))):
            msg = f"cannot save to {target}: it exists and holds no {marker}, so it is not an SAE that may be replaced"
            raise Error(msg)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent if new else target) as scratch:
            draft = Path(scratch, "sae")
            draft.mkdir()
            for name, content in files.items():
                (draft / name).write_bytes(content)
                flush(draft / name)
            if new:
                draft.rename(target)
            else:  # other files in the folder are the user's
                _exchange(draft, target, list(files), hashed)
            flush(target.parent if new else target)
    except OSError as problem:
        msg = f"cannot save to {target}: {problem.strerror or problem}"
        raise Error(msg) from None


def _empty(folder: Path, prefix: str) -> bool:
    """Whether there is nothing in a folder, but for what a killed save left."""
    return all(found.name.startswith(prefix) for found in folder.iterdir())


def _exchange(draft: Path, target: Path, names: list[str], hashed: bool) -> None:
    """Move the files of `draft` into `target`, or none; a kill between two of them leaves an SAE that is refused."""
    had = [name for name in names if (target / name).exists()]  # a kill may have left a folder without
    for name in had:
        try:
            os.link(target / name, draft / f"old-{name}")
        except OSError:  # not every disk has hard links
            shutil.copyfile(target / name, draft / f"old-{name}")
    try:
        if not hashed:
            (target / names[-1]).unlink(missing_ok=True)
        for name in names:
            os.replace(draft / name, target / name)
    except BaseException:  # Ctrl-C too
        for name in had:
            os.replace(draft / f"old-{name}", target / name)
        raise


def append_line(file: Path, line: bytes) -> None:
    """Add one line to a file and force it to the disk; a kill leaves a last line without its end.  Raises `Error`."""
    try:
        with open(file, "ab") as stream:
            stream.write(line + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as problem:
        msg = f"cannot write {file}: {problem.strerror}"
        raise Error(msg) from None


def flush(path: Path) -> None:
    """Force the content of a file, or the names in a folder, to the disk."""
    if path.is_dir() and WINDOWS:
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Who writes -----------------------------------------------------------------------------------------------------------


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other runs out of it as long as this process lives; `Error` where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT) if WINDOWS else os.open(folder, os.O_RDONLY)
    except OSError as problem:
        msg = f"cannot write checkpoints to {folder}: {problem.strerror or problem}"
        raise Error(msg) from None
    try:
        if not _lock(handle):
            msg = f"{folder} is in use by another run: wait for it, or use another folder"
            raise Error(msg)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed, as the end of a process does; False where another has it."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# What is read ---------------------------------------------------------------------------------------------------------


def check_file(file: Path) -> int:
    """The size of a regular file that memory could hold; `Error` for others: a pipe or a device would never end.

    A file that is missing is an `OSError`.
    """
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        msg = f"{file} is not a regular file"
        raise Error(msg)
    if found.st_size > memory():
        msg = f"{file} has {found.st_size} bytes, which is more than the memory of this machine"
        raise Error(msg)
    return found.st_size


def read_safetensors(file: Path) -> bytes:
    """All bytes of a file whose safetensors header agrees with its size; `Error` for a torn one, `OSError` as above."""
    safe_open = library("safetensors", "study").safe_open
    check_file(file)
    try:
        with safe_open(file, framework="np"):
            return file.read_bytes()
    except OSError:
        raise
    except Exception as problem:  # the library raises several kinds for what is torn
        msg = f"{file} is not a whole safetensors file: {sentence(problem)}"
        raise Error(msg) from None


def memory() -> float:
    """Bytes of memory of this machine; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return float("inf")


class Bounded(io.BufferedReader):
    """A file that gives at most a chunk at once, because a reader that is asked for n bytes allocates n first."""

    def read(self, size: int | None = -1, /) -> bytes:
        """At most a chunk."""
        return super().read(CHUNK if size is None or size < 0 else min(size, CHUNK))


def sentence(text: object, most: int = 200) -> str:
    """A text from a file, made fit for an error message: short, on one line, without control characters."""
    printable = "".join(c if c.isprintable() or c.isspace() else "?" for c in str(text))
    short = textwrap.shorten(printable, most, placeholder="...")
    return printable[: most - 3].strip() + "..." if short == "..." else short  # of one word without end, its beginning

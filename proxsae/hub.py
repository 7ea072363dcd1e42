"""What the cache of the Hugging Face hub holds on this machine: "org/name" or "org/name/folder" as a path.

    HF_HUB_CACHE/models--org--name/refs/main              the commit of the last download
    HF_HUB_CACHE/models--org--name/snapshots/COMMIT/...   its files, as links

Nothing is asked of the network: `hf download org/name` fills the cache.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from proxsae.conventions import Error

NAME = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))([\w.-]+)/([\w.-]+)((?:/[\w.-]+)*)")


def cache() -> Path:
    """The folder that huggingface_hub keeps its downloads in, by its own variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def find(path: str | os.PathLike[str]) -> Path:
    """The path itself where it exists or cannot be the name of a model; else that of the model in the cache.

    Raises `Error`, with the command that downloads it, where the cache does not hold it.
    """
    here = Path(path)
    named = NAME.fullmatch(here.as_posix())
    try:
        if named is None or here.exists():
            return here
        org, name, folder = named.groups()
        found = _snapshot(cache() / f"models--{org}--{name}") / folder.strip("/")
        if found.exists():
            return found
    except OSError:  # no leave to look, a name that is too long: whoever reads the path says so
        return here
    some = f' --include "{folder[1:]}*"' if folder else ""
    msg = f"{here}: there is no such file or folder, and no such model in {cache()}: hf download {org}/{name}{some}"
    msg += " (pip install huggingface_hub) fetches one"
    raise Error(msg)


def _snapshot(model: Path) -> Path:
    """The folder of the commit that `main` was at, or of the only one that was downloaded."""
    try:
        commit = (model / "refs" / "main").read_text(encoding="ascii").strip()
        if re.fullmatch(r"[0-9a-f]{40}", commit):
            return model / "snapshots" / commit
    except (OSError, ValueError):
        pass
    folders = list((model / "snapshots").glob("*"))
    return folders[0] if len(folders) == 1 else model / "snapshots"

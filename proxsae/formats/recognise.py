"""Find out which library wrote a checkpoint, by the fields of its configuration and the names of its tensors."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

from proxsae.conventions import Error
from proxsae.disk import sentence
from proxsae.formats import batchtopk, dictionary_learning, gemma_scope, openai, saelens, sparsify
from proxsae.formats.files import read_json, read_tensors, show
from proxsae.formats.parts import Config, Found, located

KNOWN = "SAELens, Gemma Scope 1 and 2, sparsify, dictionary_learning, openai, BatchTopK, and the AbsTopK authors' code"
CONFIGS = ("cfg.json", "config.json")
WEIGHTS = ("sae_weights.safetensors", "sae.safetensors", "params.safetensors", "params.npz", "ae.pt", "sae.pt")
SUFFIXES = {".safetensors", ".npz", ".pt", ".pth"}


def read(path: str | os.PathLike[str]) -> Found:
    """The SAE in a file, or in a folder of one SAE, of another library.

    It is recognised by what is in it.  A file's configuration is the `cfg.json`, `config.json` or, for NAME_N,
    `config_N.json` beside it.  Raises `Error`, naming the path, for what is torn, hostile, unknown, or not one step of
    a penalty.
    """
    place = Path(path)
    try:
        found = _read(place)
        return replace(found, metadata=located(found.metadata))
    except Error as problem:
        said = sentence(problem, 1000)  # names of files, fields and tensors are untrusted too
        named = place.name and said.startswith(f"{place.name} ")
        msg = f"{place}{said[len(place.name) :]}" if named else f"{place}: {said}"
        raise Error(msg) from None
    except OSError as problem:
        msg = f"cannot read {place}: {problem.strerror or sentence(problem)}"
        raise Error(msg) from None
    except Exception as problem:  # a torn or hostile file may raise nearly anything in the libraries that parse it
        msg = f"{place} is not a whole checkpoint: {sentence(problem) or type(problem).__name__}"
        raise Error(msg) from None


def _read(place: Path) -> Found:
    if not place.exists():
        msg = "there is no such file or folder"
        raise Error(msg)
    if place.is_file() and place.suffix == ".json":  # the configuration stands for the folder
        place = place.parent
    weights = _weights(place) if place.is_dir() else place
    kind, contents = read_tensors(weights)
    names = set(contents)
    if {"pre_bias", "latent_bias"} <= names:
        return openai.read(contents)
    if {"ae", "optimizer"} <= names:
        msg = "this is a training backup, whose biases are not yet scaled by norm_factor: save the SAE itself"
        raise Error(msg)
    if "k_buffer" in names:
        return batchtopk.read_per_row(contents)
    if kind == "npz":
        return gemma_scope.read_first(contents)
    config = _config(weights)  # formats from here on have one, and others' may lie beside those before
    if isinstance(config.get("trainer"), dict):
        return dictionary_learning.read(config, contents)
    if "w_enc" in names and "architecture" in config.entries:
        return gemma_scope.read_second(config, contents)
    if {"encoder.weight", "W_dec"} <= names and "k" in config.entries:
        return sparsify.read(config, contents)
    if "act_size" in config.entries:
        return batchtopk.read(config, contents)
    if "W_dec" in names and "d_in" in config.entries:
        return saelens.read(config, contents, weights.parent)
    held = ", ".join(sorted(map(str, names))[:12])
    fields = ", ".join(sorted(config.entries)[:12]) or "no configuration beside it"
    msg = f"tensors {show(held)} with {show(fields)} are not of a known format: {KNOWN}"
    raise Error(msg)


def _weights(folder: Path) -> Path:
    """The one file of weights in a folder: a usual name, or else the only file of a usual kind."""
    found = [folder / name for name in WEIGHTS if (folder / name).exists()]
    found = found or [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    if len(found) != 1:
        listed = ", ".join(file.name for file in found[:6]) or "none" + _deeper(folder)
        msg = f"a folder of one SAE holds one file of weights, but here are {listed}: name the file, or its folder"
        raise Error(msg)
    return found[0]


def _deeper(folder: Path) -> str:
    """Which folders below hold weights, in words: three of them, from as many as are looked at."""
    walk = itertools.islice(os.walk(folder), 1000)
    held = (place for place, _, files in walk if any(Path(file).suffix in SUFFIXES for file in files))
    found = [os.path.relpath(place, folder) for place in itertools.islice(held, 4)]
    return f"; some are in {', '.join(found[:3])}{' and others' if len(found) > 3 else ''}" if found else ""


def _config(weights: Path) -> Config:
    number = re.search(r"_(\d+)$", weights.stem)
    names = ([f"config_{number[1]}.json"] if number else []) + list(CONFIGS)
    for name in names:
        if (weights.parent / name).exists():
            return Config(read_json(weights.parent / name), name)
    return Config({}, "no configuration")

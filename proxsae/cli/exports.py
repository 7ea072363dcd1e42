"""Commands that write files for other programs: `encode` writes codes, `convert` an SAE in another format."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from proxsae.cli.common import check_apart, check_path, command, paragraph, progress
from proxsae.cli.saes import RULES, SAE, encoder_arguments, format_of, open_both
from proxsae.conventions import Error, check_count, check_seed
from proxsae.disk import beside, check_writable

FAR = 1e-3  # a relative difference of codes beyond what rounding to float32 explains


def add(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    encode = command(
        commands,
        "encode",
        _encode,
        "write the sparse codes of all rows: indices (n, s), values (n, s) and d_sae in one .npz file",
        "proxsae encode runs/my-sae activations.npy --steps 4 --out codes.npz",
    )
    encode.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="encoder steps (default: as saved); another number, or any of the next three options, replaces the rule "
        "with which the SAE was saved",
    )
    encoder_arguments(encode)
    encode.add_argument("--out", required=True, metavar="FILE.npz", help="the file to write")

    convert = command(
        commands,
        "convert",
        _convert,
        "write an SAE in another format, read it back, and compare the codes of random rows",
        "proxsae convert params.npz runs/my-sae",
    )
    convert.add_argument("source", metavar="SRC", help=SAE)
    convert.add_argument("target", metavar="DST", help="folder to write")
    convert.add_argument("--to", choices=("proxsae", "saelens"), default="proxsae", help="format (default: proxsae)")
    convert.add_argument(
        "--double", action="store_true", help="write signed codes as non-negative ones of twice the width, [D, -D]"
    )
    convert.add_argument("--seed", type=int, default=0, help="seed of the rows compared (default: 0)")


def _encode(arguments: argparse.Namespace) -> int:
    if not arguments.out.endswith(".npz"):
        msg = f"--out {arguments.out!r} must end in .npz"
        raise Error(msg)
    if arguments.steps is not None:
        check_count("--steps", arguments.steps, 1)
    if arguments.batch_size is not None:
        check_count("--batch-size", arguments.batch_size, 1)
    check_apart("--out", arguments.out, SAE=arguments.sae, DATA=arguments.data)

    target = Path(arguments.out)
    check_writable(target.parent)
    if target.is_dir():
        msg = f"cannot write {target}: a folder is in the way"
        raise Error(msg)
    sae, rows, _ = open_both(arguments)

    from proxsae.sae.evaluation import encode_rows, unrolled
    from proxsae.sae.inspection import steps_of

    saved, steps = sae, arguments.steps or sae.steps
    if steps != sae.steps or arguments.step or arguments.analysis or arguments.b_enc:
        rule, analysis = RULES.get(arguments.step), arguments.analysis or "dictionary"
        sae = unrolled(sae, steps, rule, analysis, arguments.b_enc or "first")
    with progress("rows") as shown:
        codes = encode_rows(sae, rows, arguments.batch_size, shown)

    import numpy as np

    with beside(target) as draft, draft.open("wb") as file:
        np.savez(file, **codes)
    values = codes["values"]
    n, width = values.shape
    print(f"written to {target}: indices and values ({n}, {width}), d_sae = {sae.d_sae}, steps = {steps_of(sae)}")
    if sae is not saved and saved.steps > 1:
        print(f"These take the place of the steps that the SAE was saved with: {steps_of(saved)}")
    print(f"mean non-zeros a row: {np.count_nonzero(values) / n:.4g}; entries of value 0 are padding")
    if not sae.penalty.rowwise:
        print("The selection is over a batch, so the codes depend on the rows that share one.")
    if sae.normalize != "none":
        print("These are codes of normalised rows: decode(codes, like=rows) gives the units of the data.")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    source, target = arguments.source, arguments.target
    check_path("SRC", source)
    check_path("DST", target)
    check_seed(arguments.seed)
    if arguments.double and arguments.to == "proxsae":
        msg = "--double goes with --to saelens: the format of proxsae keeps signed codes as they are"
        raise Error(msg)
    original = os.path.realpath(source)
    kept = (original, os.path.dirname(original), os.path.realpath(os.path.dirname(source)))  # a hub's files are links
    if os.path.realpath(target) in (kept if os.path.isfile(source) else kept[:2]):
        msg = f"SRC and DST are both {target}, or SRC lies in it: name another folder, so that the original stays"
        raise Error(msg)
    if arguments.to == "saelens" and os.path.isdir(target):
        msg = f"DST {target} exists: choose a new folder, so that no other SAE is replaced"
        raise Error(msg)

    check_writable(target)

    from proxsae.sae import load
    from proxsae.sae.inspection import compare, notes_of, summary

    sae: Any = load(source)
    read, notes = summary(sae), notes_of(sae)
    if arguments.to == "saelens":
        sae, more = _one_step(source, sae)
        notes += more
    if arguments.to == "proxsae":
        sae.save(target)
    else:
        sae.export(target, double=arguments.double)
    again = load(target)
    difference, rows, compared = compare(sae, again, arguments.seed)
    agree = f"differ by at most {difference:.1g} of the largest in a row" if difference else "are the same"
    print(paragraph("read     ", f"{source}: {format_of(source, sae)}; {read}"))
    for note in notes:
        print(paragraph("note     ", note))
    print(paragraph("written  ", f"{target}: {format_of(target, again)}; {summary(again)}"))
    print(paragraph("checked  ", f"read back, the codes of {rows} random rows {agree} ({compared} non-zeros compared)"))
    if not difference <= FAR:
        print("The codes differ by more than rounding explains: do not use what was written before you know why.")
        return 1
    return 0


def _one_step(source: str, sae: Any) -> tuple[Any, list[str]]:
    """`sae` as SAELens can represent it, and a note if its selection changes; `Error` if it has several steps."""
    from proxsae.penalties import BatchKSparse

    if sae.steps > 1:
        msg = f"{source} has {sae.steps} encoder steps and SAELens' encoders take one, so `proxsae convert` can write "
        msg += "it with --to proxsae only; in Python, unrolled(1).export(DST) writes its first step"
        raise Error(msg)
    if not isinstance(sae.penalty, BatchKSparse) or not bool(sae.batch_threshold >= 0):
        return sae, []
    threshold = float(sae.batch_threshold)
    return sae.thresholded(), [f"The threshold {threshold:.4g} of training replaces the selection over a batch."]

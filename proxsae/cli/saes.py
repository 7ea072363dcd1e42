"""Commands for those who bring an SAE: `inspect` says what it is, `eval` what it does on rows."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proxsae.cli.common import check_path, command, outliers_argument, paragraph, progress, steps_of_encoder
from proxsae.conventions import Error, check_count
from proxsae.disk import check_writable, sentence, write_files
from proxsae.learned import NAMED, Greedy, LearnedRule
from proxsae.steps import Backtracking, ExactStep, Lipschitz, Refit, Rule
from proxsae.studies.machine import device_named, machine, versions

RULES: dict[str, Rule] = {
    "exact": ExactStep(),
    "lipschitz": Lipschitz(),
    "backtracking": Backtracking(),
    "refit": Refit(),
    "mp": NAMED["mp"],
    "omp": NAMED["omp"],
}
SAE = "an SAE: a folder or file of proxsae or of another library, or the name of a downloaded hub model, org/name"
HEADINGS = {
    "steps": "steps", "nmse": "nmse", "explained_variance": "ev", "l0": "l0", "cosine": "cosine", "dead": "dead",
    "two_sided": "two-sided", "support_change": "support", "objective": "objective", "cost": "cost",
}  # fmt: skip


def add(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    inspect = command(
        commands,
        "inspect",
        _inspect,
        "say in words what the file of an SAE implies: its prox, safe steps, normalisation, idle latents; or what "
        "rows are like: norms, outliers, mean",
        "proxsae inspect runs/my-sae",
    )
    inspect.add_argument("sae", metavar="SAE", help=f"{SAE}; or rows, as `proxsae train` takes them")
    inspect.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")

    evaluate = command(
        commands,
        "eval",
        _eval,
        "measure an SAE on rows at several numbers of encoder steps: error, sparsity, dead and two-sided latents, cost",
        "proxsae eval runs/my-sae activations.npy --steps 1,2,4,8,16 --out runs/eval",
    )
    evaluate.add_argument(
        "--steps", metavar="N,N,...", help="numbers of encoder steps, also inf: solved (default: 1,2,4,8,16)"
    )
    encoder_arguments(evaluate, (*RULES, "learned"))
    outliers_argument(evaluate)
    evaluate.add_argument("--out", metavar="DIR", help="folder for rows.csv and rows.json (default: none)")


def encoder_arguments(parser: argparse.ArgumentParser, rules: Iterable[str] = RULES) -> None:
    """The arguments of the commands that encode: an SAE, rows, and how it is to encode them."""
    parser.add_argument("sae", metavar="SAE", help=SAE)
    parser.add_argument("data", metavar="DATA", help="rows (n, d_in): .npy, .npz, .safetensors, .pt or a folder")
    parser.add_argument(
        "--step",
        choices=tuple(rules),
        help="rule of the steps after the first, or greedy pursuit, mp or omp, an atom a step (default: exact, or "
        "lipschitz where R is not affine)",
    )
    parser.add_argument(
        "--analysis",
        choices=("dictionary", "encoder"),
        help="what steps 2, 3, ... multiply the residual by: the atoms, or the learned encoder (default: dictionary)",
    )
    parser.add_argument("--b-enc", choices=("first", "every"), help="steps in which b_enc acts (default: first)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows encoded together (default: 4096 or fewer)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


def _inspect(arguments: argparse.Namespace) -> int:
    check_path("SAE", arguments.sae)
    device = device_named(arguments.device)

    from proxsae.sae import load
    from proxsae.sae.inspection import inspect

    try:
        sae = load(arguments.sae)
        told = [("format", format_of(arguments.sae, sae)), *inspect(sae.to(device))]
    except Error as problem:
        told = _about_rows(arguments.sae, problem)
    facts = [("file", arguments.sae), *told]
    width = max(len(name) for name, _ in facts)
    for name, told in facts:
        print(paragraph(f"{name:{width}}  ", told))
    return 0


def _about_rows(path: str, problem: Error) -> list[tuple[str, str]]:
    """What rows are like, as (name, sentence) pairs; raises the problem with the SAE where the path names no rows."""
    from proxsae.data import open_rows, survey
    from proxsae.sae.inspection import of_record

    try:
        rows = open_rows(path)
    except Error:
        raise problem from None
    seen = survey(rows)
    first = ", ".join(map(str, seen.outliers[:5])) + (", ..." if len(seen.outliers) > 5 else "")
    outliers = f"none above {seen.above:g} times the median norm"
    if first:
        outliers = f"{len(seen.outliers)} above {seen.above:g} times the median norm (row {first}) hold "
        outliers += f"{100 * seen.share:.2g} % of all squares: --outliers drop leaves them out"
    told = [
        ("rows", f"{len(rows)} of width {rows.shape[1]}, {rows.dtype}{of_axes(rows)}"),
        ("norms", f"median {seen.median:.4g}, largest {seen.largest:.4g}"),
        ("outliers", outliers),
        ("mean", f"||mean|| = {seen.mean:.4g}, spread = {seen.spread:.4g}, gamma = {seen.gamma:.3g}, their ratio"),
        (
            "gamma",
            "the larger it is, the more latents are dead at the start where b_dec begins at 0 (arXiv 2605.31518); "
            "training here begins b_dec at the mean row",
        ),
    ]
    return told if rows.collected is None else [*told, ("from", of_record(rows.collected))]


def _eval(arguments: argparse.Namespace) -> int:
    steps = steps_of_encoder("--steps", arguments.steps)
    check_path("--out", arguments.out)

    from proxsae.report.rows import as_csv, as_json, cell

    if arguments.out is not None:
        check_writable(arguments.out)
    sae, rows, device = open_both(arguments)

    from proxsae.sae.evaluation import STEPS, default_batch, evaluate_depths
    from proxsae.sae.inspection import name_of

    learned = arguments.step == "learned"
    if learned:
        _check_learned(sae, arguments)
    analysis = arguments.analysis or "dictionary"
    b_enc = arguments.b_enc or (sae.encoding.b_enc if learned else "first")
    greedy = isinstance(RULES.get(arguments.step), Greedy)
    most = sae.steps if learned else getattr(sae.penalty, "k", 1) if greedy else math.inf
    steps = steps or tuple(t for t in STEPS if t <= most)
    R, started = sae.penalty, time.perf_counter()
    size = default_batch(sae) if arguments.batch_size is None else check_count("--batch-size", arguments.batch_size, 1)
    with progress("rows") as shown:
        found = evaluate_depths(
            sae,
            rows,
            steps,
            step=sae.step if learned else RULES.get(arguments.step),
            analysis=analysis,
            b_enc=b_enc,
            batch_size=size,
            progress=shown,
        )
    meta = {
        "sae": arguments.sae,
        "encoder": name_of(R),
        "data": arguments.data,
        "rows": len(rows),
        "outliers": rows.outliers,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "analysis": analysis,
        "step": "unit" if analysis == "encoder" else arguments.step or ("exact" if R.affine else "lipschitz"),
        "b_enc": b_enc,
        "batch size": size,
        "device": device,
        "machine": machine(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
        "command": "proxsae " + " ".join(sys.argv[1:]),
    }
    if arguments.out is not None:  # before printing: nobody who pipes the table into `head` loses the run
        write_files({"rows.csv": as_csv(found), "rows.json": as_json(found, meta)}, arguments.out)
    how = "by the learned encoder" if analysis == "encoder" else f"by the dictionary, step {meta['step']}"
    given = f"{len(rows)} rows of width {sae.d_in}{of_axes(rows)}{treated(rows)}"
    print(f"{name_of(R)}, {sae.d_sae} latents, on {given}; further steps {how}")
    lines = [list(HEADINGS.values()), *([cell(row[key]) for key in HEADINGS] for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print("\n".join("  ".join(map(str.rjust, line, widths)) for line in lines))
    for remark in _remarks(sae, meta, found, min(size, len(rows))):
        print(paragraph("", remark))
    if arguments.out is not None:
        print(f"written to {arguments.out}: rows.csv, rows.json ({meta['seconds']} s)")
    return 0


def _check_learned(sae: Any, arguments: argparse.Namespace) -> None:
    """Raise `Error` where the SAE has no learned steps, or other options contradict them."""
    if not isinstance(sae.step, LearnedRule):
        msg = f"--step learned needs an SAE trained with learned steps, and {arguments.sae} has none: "
        msg += f"choose another --step ({', '.join(RULES)})"
        raise Error(msg)
    if arguments.analysis == "encoder" or arguments.b_enc not in (None, sae.encoding.b_enc):
        msg = "--step learned takes the steps as they were trained: leave --analysis and --b-enc out"
        raise Error(msg)


def _remarks(sae: Any, meta: dict[str, Any], found: list[dict[str, Any]], size: int) -> list[str]:
    """What a reader of the table should know, where it applies."""
    from proxsae.sae.inspection import keeps_everything, lam_is_zero

    remarks = [
        "support: mean Jaccard distance to the supports in the line above; cost: products with the dictionary a row, "
        "in encoder products; objective: 1/2 ||x - b - Dz||^2 + R(z)"
        + (" - <b_enc, z>." if meta["b_enc"] == "every" else ".")
    ]
    if lam_is_zero(sae.penalty) and meta["b_enc"] == "first" and found[-1]["steps"] > 1:
        remarks.append("lam is 0, so steps without b_enc seek no sparse code: try --b-enc every.")
    if keeps_everything(sae):
        remarks.append(f"k = {sae.penalty.k} is not less than d_sae = {sae.d_sae}, so it limits nothing.")
    if sae.steps > 1 and meta["step"] != "learned":
        remarks.append(f"The SAE was saved with {sae.steps} steps, which these take the place of.")
    if not sae.penalty.rowwise:
        remarks.append(f"The selection is over a batch, so the codes depend on the rows that share one: {size} here.")
    if sae.normalize != "none":
        remarks.append("The encoder sees normalised rows: objective is in its units, nmse and ev in those of the data.")
    if found[0]["steps"] == 1 and found[0]["nmse"] > 1:
        remarks.append("At one step the error exceeds the data itself (nmse > 1): these rows are hardly what this SAE "
                       "was trained on. Compare layer, scale and normalisation (`proxsae inspect`).")  # fmt: skip
    return remarks


def open_both(arguments: argparse.Namespace) -> tuple[Any, Any, str]:
    """The SAE, on its device, the rows, which may be larger than memory, and the name of the device."""
    check_path("SAE", arguments.sae)
    check_path("DATA", arguments.data)
    device = device_named(arguments.device)

    from proxsae import data
    from proxsae.sae import load

    sae = load(arguments.sae).to(device)
    return sae, data.open_rows(arguments.data, getattr(arguments, "outliers", "keep")), device


def of_axes(rows: Any) -> str:
    """A note where the arrays have more axes than two: they were taken as rows over the last one."""
    axes = getattr(rows, "axes", 2)
    return f" (arrays of {axes} axes, all but the last taken as rows)" if axes > 2 else ""


def treated(rows: Any) -> str:
    """A note where rows that stand out were dropped or clipped."""
    from proxsae.data.rows import KEPT

    return "" if rows.outliers == KEPT else f" ({rows.outliers})"


def format_of(path: str, sae: Any) -> str:
    """The format of the file at `path`, and where it was converted from."""
    from proxsae.formats.own import CONFIG
    from proxsae.sae.loading import place_of

    origin = sae.metadata.get("format")
    if not origin:
        return "proxsae"
    converted = (place_of(Path(path)) / CONFIG).is_file()
    return f"proxsae, converted from {sentence(origin)}" if converted else sentence(origin)

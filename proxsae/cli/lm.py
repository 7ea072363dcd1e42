"""Commands with a language model in the loop: `lm collect`, `lm eval`, `lm top`, `lm steer` and `lm probe`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from proxsae.cli.common import Parser, command, numbers, progress
from proxsae.cli.loop import TEXT, Loop, counted, kind, tokens_arguments
from proxsae.cli.saes import SAE
from proxsae.conventions import Error, check_count
from proxsae.disk import check_writable, write_files

DATA = "labelled texts: .jsonl or .csv (also .csv.zst) with a field label or target beside the text"
COLUMNS = ("steps", "nmse", "loss", "recovered (mean)", "95 %", "recovered (zero)", "kl")


def add(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    lm = command(
        commands,
        "lm",
        _help,
        "collect activations of a language model, and measure what an SAE in their place does to it",
        "proxsae lm eval smollm2.gguf runs/my-sae texts.jsonl --module model.layers.15",
    )
    kinds = lm.add_subparsers(
        metavar="WHAT",
        parser_class=Parser,
        help="collect, eval, top, steer or probe: `proxsae lm WHAT --help` explains each",
    )

    collect = kind(
        kinds, "collect", _collect,
        "write the activations at a module to a folder of .npy shards; a stopped run goes on",
        "proxsae lm collect smollm2.gguf texts.jsonl --module model.layers.15 --tokens 300000 --out rows",
    )  # fmt: skip
    collect.add_argument("text", nargs="+", metavar="TEXT", help=TEXT)
    tokens_arguments(collect, 300_000)
    collect.add_argument(
        "--dtype", choices=("float16", "float32"), default="float32", help="on the disk (default: float32)"
    )
    collect.add_argument("--out", required=True, metavar="DIR", help="folder of the shards and their record")

    evaluate = kind(
        kinds, "eval", _eval,
        "loss recovered and KL of the model with the SAE in place, at several numbers of encoder steps",
        "proxsae lm eval smollm2.gguf runs/my-sae texts.jsonl --module model.layers.15 --steps 1,4,16",
    )  # fmt: skip
    evaluate.add_argument("sae", metavar="SAE", help=SAE)
    evaluate.add_argument("text", nargs="+", metavar="TEXT", help=TEXT)
    evaluate.add_argument(
        "--steps", default="1,2,4,8,16", metavar="N,N,...", help="encoder steps (default: 1,2,4,8,16)"
    )
    tokens_arguments(evaluate, 10_000)
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the intervals (default: 0)")
    evaluate.add_argument("--out", metavar="DIR", help="folder for rows.csv and rows.json (default: none)")

    top = kind(
        kinds, "top", _top, "a page of the contexts in which latents fire most, both signs in two columns",
        "proxsae lm top smollm2.gguf runs/my-sae texts.jsonl --module model.layers.15 --out runs/top",
    )  # fmt: skip
    top.add_argument("sae", metavar="SAE", help=SAE)
    top.add_argument("text", nargs="+", metavar="TEXT", help=TEXT)
    top.add_argument(
        "--latents",
        metavar="J,J,...",
        help="latents to show (default: the 24 that fire most, on at most 5 %% of tokens)",
    )
    top.add_argument("--count", type=int, default=10, metavar="N", help="contexts of each sign (default: 10)")
    top.add_argument("--steps", type=int, default=1, metavar="T", help="encoder steps (default: 1)")
    tokens_arguments(top, 30_000)
    top.add_argument("--out", required=True, metavar="DIR", help="folder of report.html")

    steer = kind(
        kinds, "steer", _steer, "what the model writes with a latent set to -v, 0 and +v",
        "proxsae lm steer smollm2.gguf runs/my-sae --module model.layers.15 --latent 7 --value 40 --prompt 'I think'",
    )  # fmt: skip
    steer.add_argument("sae", metavar="SAE", help=SAE)
    steer.add_argument("--latent", type=int, required=True, metavar="J", help="the latent")
    steer.add_argument("--value", type=float, required=True, metavar="V", help="what it is set to, and to minus that")
    steer.add_argument("--prompt", required=True, metavar="TEXT", help="how the text begins")
    steer.add_argument("--new", type=int, default=40, metavar="N", help="tokens to write (default: 40)")

    probe = kind(
        kinds, "probe", _probe,
        "how well the few best latents tell two classes of texts apart, at several numbers of encoder steps",
        "proxsae lm probe smollm2.gguf runs/my-sae 92_glue_sst2.csv.zst --module model.layers.15 --steps 1,16",
    )  # fmt: skip
    probe.add_argument("sae", metavar="SAE", help=SAE)
    probe.add_argument("text", nargs=1, metavar="DATA", help=DATA)
    probe.add_argument("--steps", default="1,16", metavar="N,N,...", help="encoder steps (default: 1,16)")
    probe.add_argument("--k", default="1,4,16,64", metavar="K,K,...", help="latents (default: 1,4,16,64)")
    probe.add_argument(
        "--length", type=int, default=1024, metavar="N", help="last tokens of a text that are run (default: 1024)"
    )
    probe.add_argument("--batch-size", type=int, default=8, metavar="N", help="texts run together (default: 8)")
    probe.add_argument("--seed", type=int, default=42, help="seed of the split and the probes (default: 42)")
    probe.add_argument("--out", metavar="DIR", help="folder for rows.csv and rows.json (default: none)")


def _help(arguments: argparse.Namespace) -> int:
    msg = "say what: lm collect, lm eval, lm top, lm steer or lm probe (see `proxsae lm --help`)"
    raise Error(msg)


def _collect(arguments: argparse.Namespace) -> int:
    loop = Loop(arguments)

    from proxsae.models import collect

    with progress("tokens") as shown:
        record = collect(
            loop.model, arguments.module, counted(loop.batches(), arguments.tokens, shown), arguments.out,
            dtype=arguments.dtype, **loop.where,
        )  # fmt: skip
    norms = record["norms"]
    print(f"{record['rows']} rows of {record['width']} in {arguments.out}, of {record['tokens']} tokens")
    print(f"norms: median {norms['median']:.4g}, largest {norms['largest']:.4g}; ", end="")
    print(f"mean over spread: {norms['gamma']:.3g}")
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    steps = numbers("--steps", arguments.steps)
    if arguments.out:
        check_writable(arguments.out)
    loop = Loop(arguments)

    from proxsae.models.losses import compare
    from proxsae.report.rows import as_csv, as_json
    from proxsae.sae.evaluation import unrolled

    saes = {str(t): unrolled(loop.sae, t, None, "dictionary") for t in steps}
    table = compare(loop.model, loop.batches(), arguments.module, saes, **loop.where, seed=arguments.seed)
    rows = [{"steps": t, **table[str(t)]} for t in steps]
    if arguments.out:
        meta = loop.about(sae=arguments.sae, text=", ".join(arguments.text))
        write_files({"rows.csv": as_csv(rows), "rows.json": as_json(rows, meta)}, arguments.out)
    first = rows[0]
    print(f"{first['tokens']} predictions of {first['sequences']} rows; cross-entropy in nats a token")
    print(f"the model itself {first['loss']:.4f}, with the mean in place {first['loss_mean']:.4f}, ", end="")
    print(f"with zeros {first['loss_zero']:.4f}\n")
    print("".join(f"{name:>18}" for name in COLUMNS))
    for row in rows:
        low, high = row["recovered_mean_low"], row["recovered_mean_high"]
        between = "-" if low is None else f"[{low:.3f}, {high:.3f}]"
        cells = (
            str(row["steps"]), f"{row['nmse']:.4f}", f"{row['loss_spliced']:.4f}", f"{row['recovered_mean']:.4f}",
            between, f"{row['recovered_zero']:.4f}", f"{row['kl']:.4f}",
        )  # fmt: skip
        print("".join(f"{cell:>18}" for cell in cells))
    return 0


def _top(arguments: argparse.Namespace) -> int:
    chosen = numbers("--latents", arguments.latents, 0)
    check_writable(arguments.out)
    loop = Loop(arguments)

    from proxsae.models.contexts import strongest
    from proxsae.report import Section, Table, write_report
    from proxsae.sae.evaluation import unrolled

    sae = unrolled(loop.sae, check_count("--steps", arguments.steps, 1), None, "dictionary")
    if outside := [j for j in chosen if j >= sae.d_sae]:
        msg = f"--latents {outside[0]} must be below {sae.d_sae}: this SAE has no other"
        raise Error(msg)
    with progress("tokens") as shown:
        batches = counted(loop.batches(), arguments.tokens, shown)
        table, tokens = strongest(loop.model, batches, arguments.module, sae, arguments.count, **loop.where)
    if not chosen:
        order = sorted(table, key=lambda one: one.up + one.down, reverse=True)
        chosen = tuple(one.latent for one in order if 0 < one.up + one.down <= 0.05 * tokens)[:24]
    if not chosen:
        msg = f"no latent fires on at most 5 % of {tokens} tokens: name some by --latents, or give more --tokens"
        raise Error(msg)

    def shown_as(context: Any) -> str:
        words = [loop.tokenizer.decode([i]) for i in context.ids]
        words[context.at] = f"\u27e6{words[context.at]}\u27e7"
        return " ".join("".join(words).split())

    sections, rows = [], []
    for j in chosen:
        one = table[j]
        count = max(len(one.positive), len(one.negative))
        columns = [[(f"{c.value:.3g}", shown_as(c)) for c in side] for side in (one.positive, one.negative)]
        columns = [side + [("", "")] * (count - len(side)) for side in columns]
        lines = [[*up, *down] for up, down in zip(*columns, strict=True)]
        share = 100 * (one.up + one.down) / tokens
        told = f"fires on {share:.2g} % of tokens: {one.up} times with z > 0, {one.down} with z < 0"
        headings = ("z\u00a0>\u00a00", "context", "z\u00a0<\u00a00", "context")  # on one line
        drawn = Table(f"latent-{j}", "The token in \u27e6 \u27e7 is the one that fires.", headings, lines)
        sections.append(Section(f"latent-{j}", f"Latent {j}", told, shown=[drawn]))
        rows.append({"latent": j, "up": one.up, "down": one.down, "tokens": tokens})
    meta = loop.about(sae=arguments.sae, text=", ".join(arguments.text), tokens=tokens, steps=arguments.steps)
    write_report(sections, meta, rows, arguments.out, title="In which contexts latents fire")
    print(f"{len(chosen)} latents of {tokens} tokens: {os.path.join(arguments.out, 'report.html')}")
    return 0


def _steer(arguments: argparse.Namespace) -> int:
    loop = Loop(arguments)

    import torch

    from proxsae.models import steer

    model: Any = loop.model
    if not hasattr(model, "generate"):
        msg = f"{arguments.model} is no causal model, and cannot write: steer one that can"
        raise Error(msg)
    given = loop.tokenizer(arguments.prompt, return_tensors="pt").to(model.device)
    for value in (-arguments.value, 0.0, arguments.value):
        with torch.no_grad(), steer(loop.model, arguments.module, loop.sae, {arguments.latent: value}, **loop.where):
            ids = model.generate(
                **given, max_new_tokens=arguments.new, do_sample=False, pad_token_id=loop.tokenizer.pad_token_id
            )
        written = loop.tokenizer.decode(ids[0], skip_special_tokens=True)
        print(f"z_{arguments.latent} = {value:g}: {' '.join(written.split())}")
    return 0


def _probe(arguments: argparse.Namespace) -> int:
    steps, ks = numbers("--steps", arguments.steps), numbers("--k", arguments.k)
    if arguments.out:
        check_writable(arguments.out)
    loop = Loop(arguments)

    from proxsae.models import dense_probes, last_tokens, probe, split
    from proxsae.models.huggingface import labelled_texts
    from proxsae.models.interventions import warn_elsewhere
    from proxsae.report.rows import as_csv, as_json
    from proxsae.sae.evaluation import unrolled

    batches, places, labels, left_out = labelled_texts(
        arguments.text[0], loop.tokenizer, arguments.length, arguments.batch_size, arguments.skip
    )
    warn_elsewhere([loop.sae], arguments.module, arguments.at)
    train, test = parts = split(labels, seed=arguments.seed)
    with progress("tokens") as shown:
        total = sum(int(batch["attention_mask"].sum()) for batch in batches)
        x = last_tokens(loop.model, arguments.module, counted(batches, total, shown), **loop.where)[places]
    dense = dense_probes(x, labels, parts, arguments.seed)
    rows = [
        {"steps": t, **row}
        for t in steps
        for row in probe(unrolled(loop.sae, t, None, "dictionary"), x, labels, parts, ks, arguments.seed)
    ]
    if arguments.out:
        meta = loop.about(sae=arguments.sae, data=arguments.text[0], **dense)
        flat = [{**row, "latents": " ".join(map(str, row["latents"]))} for row in rows]
        write_files({"rows.csv": as_csv(flat), "rows.json": as_json(flat, meta)}, arguments.out)
    print(f"{len(labels)} texts, {len(train)} to train on and {len(test)} for the test", end="")
    print(f"; {left_out} with no token beyond the first {arguments.skip} are left out" if left_out else "")
    print(f"the positive class is {max(labels)!r}\n")
    print(f"{'steps':>22}{'k':>8}{'auc':>10}{'accuracy':>10}{'f1':>10}  best latents")
    for name, found in dense.items():
        print(f"{name:>22}{x.shape[1]:>8}{found['auc']:>10.4f}{found['accuracy']:>10.4f}{found['f1']:>10.4f}")
    for row in rows:
        best = ", ".join(map(str, row["latents"][:4])) + (", ..." if row["k"] > 4 else "")
        print(f"{row['steps']:>22}{row['k']:>8}{row['auc']:>10.4f}{row['accuracy']:>10.4f}{row['f1']:>10.4f}  {best}")
    return 0

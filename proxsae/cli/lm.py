"""Commands with a language model in the loop: `lm collect`, `lm eval`, `lm top` and `lm steer`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from proxsae.cli.common import Parser, check_path, check_sae_there, check_there, command, numbers, progress
from proxsae.cli.saes import SAE
from proxsae.conventions import Error, check_count
from proxsae.disk import check_writable, write_files
from proxsae.studies.machine import device_named, machine, versions

MODEL = "a folder of a Hugging Face model, or a GGUF file"
TEXT = "texts: .jsonl and .csv (also .csv.zst) with a field text, prompt or content, or any text file"
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
        metavar="WHAT", parser_class=Parser, help="collect, eval, top or steer: `proxsae lm WHAT --help` explains each"
    )

    collect = _kind(
        kinds, "collect", _collect,
        "write the activations at a module to a folder of .npy shards; a stopped run goes on",
        "proxsae lm collect smollm2.gguf texts.jsonl --module model.layers.15 --tokens 300000 --out rows",
    )  # fmt: skip
    collect.add_argument("text", nargs="+", metavar="TEXT", help=TEXT)
    _tokens(collect, 300_000)
    collect.add_argument(
        "--dtype", choices=("float16", "float32"), default="float32", help="on the disk (default: float32)"
    )
    collect.add_argument("--out", required=True, metavar="DIR", help="folder of the shards and their record")

    evaluate = _kind(
        kinds, "eval", _eval,
        "loss recovered and KL of the model with the SAE in place, at several numbers of encoder steps",
        "proxsae lm eval smollm2.gguf runs/my-sae texts.jsonl --module model.layers.15 --steps 1,4,16",
    )  # fmt: skip
    evaluate.add_argument("sae", metavar="SAE", help=SAE)
    evaluate.add_argument("text", nargs="+", metavar="TEXT", help=TEXT)
    evaluate.add_argument(
        "--steps", default="1,2,4,8,16", metavar="N,N,...", help="encoder steps (default: 1,2,4,8,16)"
    )
    _tokens(evaluate, 10_000)
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the intervals (default: 0)")
    evaluate.add_argument("--out", metavar="DIR", help="folder for rows.csv and rows.json (default: none)")

    top = _kind(
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
    _tokens(top, 30_000)
    top.add_argument("--out", required=True, metavar="DIR", help="folder of report.html")

    steer = _kind(
        kinds, "steer", _steer, "what the model writes with a latent set to -v, 0 and +v",
        "proxsae lm steer smollm2.gguf runs/my-sae --module model.layers.15 --latent 7 --value 40 --prompt 'I think'",
    )  # fmt: skip
    steer.add_argument("sae", metavar="SAE", help=SAE)
    steer.add_argument("--latent", type=int, required=True, metavar="J", help="the latent")
    steer.add_argument("--value", type=float, required=True, metavar="V", help="what it is set to, and to minus that")
    steer.add_argument("--prompt", required=True, metavar="TEXT", help="how the text begins")
    steer.add_argument("--new", type=int, default=40, metavar="N", help="tokens to write (default: 40)")


def _help(arguments: argparse.Namespace) -> int:
    msg = "say what: lm collect, lm eval, lm top or lm steer (see `proxsae lm --help`)"
    raise Error(msg)


def _kind(kinds: Any, name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
    parser = command(kinds, name, run, description, example)
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--module", required=True, metavar="NAME", help="dotted name of a module, such as model.layers.15"
    )
    parser.add_argument("--at", choices=("output", "input"), default="output", help="of the module (default: output)")
    parser.add_argument(
        "--skip", type=int, default=1, metavar="N",
        help="first tokens of each row that are left alone, as attention sinks have to be (default: 1)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    return parser


def _tokens(parser: argparse.ArgumentParser, count: int) -> None:
    parser.add_argument("--tokens", type=int, default=count, metavar="N", help=f"tokens to run (default: {count})")
    parser.add_argument("--length", type=int, default=128, metavar="N", help="tokens a row (default: 128)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows run together (default: 8)")


class _Loop:
    """The model, its tokenizer, the SAE and the batches that a command names."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        texts, sae = getattr(arguments, "text", ()), getattr(arguments, "sae", None)
        for name, path in (
            ("MODEL", arguments.model), ("SAE", sae), *(("TEXT", text) for text in texts),
            ("--out", getattr(arguments, "out", None)),
        ):  # fmt: skip
            check_path(name, path)
        for path in (arguments.model, *texts):
            check_there(path)
        check_sae_there(sae)
        for name in ("skip", "tokens", "length", "batch_size", "new", "count"):
            if hasattr(arguments, name):
                check_count(f"--{name.replace('_', '-')}", getattr(arguments, name), int(name != "skip"))
        device = device_named(arguments.device)

        from proxsae.models.huggingface import open_model
        from proxsae.sae import load

        self.sae: Any = load(arguments.sae).to(device) if hasattr(arguments, "sae") else None
        self.model, self.tokenizer = open_model(arguments.model)
        self.model.to(device)
        self.arguments = arguments
        self.where = {"at": arguments.at, "skip": arguments.skip}

    def batches(self) -> Any:
        """The batches of tokens, one at a time."""
        from proxsae.models.huggingface import texts, token_batches

        a = self.arguments
        return token_batches(texts(a.text), self.tokenizer, a.length, a.batch_size, a.tokens)

    def about(self, **more: Any) -> dict[str, Any]:
        """What the run was."""
        a = self.arguments
        return {
            "model": a.model, "module": f"{a.at} of {a.module}", **more, "skip": a.skip, "device": a.device,
            "machine": machine(), "versions": versions(), "command": "proxsae " + " ".join(sys.argv[1:]),
        }  # fmt: skip


def _collect(arguments: argparse.Namespace) -> int:
    loop = _Loop(arguments)

    from proxsae.models import collect

    with progress("tokens") as shown:
        record = collect(
            loop.model, arguments.module, _counted(loop.batches(), arguments.tokens, shown), arguments.out,
            dtype=arguments.dtype, **loop.where,
        )  # fmt: skip
    norms = record["norms"]
    print(f"{record['rows']} rows of {record['width']} in {arguments.out}, of {record['tokens']} tokens")
    print(f"norms: median {norms['median']:.4g}, largest {norms['largest']:.4g}; ", end="")
    print(f"mean over spread: {norms['gamma']:.3g}")
    return 0


def _counted(batches: Any, total: int, shown: Any) -> Any:
    """The batches, with the tokens so far shown."""
    done = 0
    for batch in batches:
        yield batch
        done += int(batch["attention_mask"].sum())
        shown(min(done, total), total)


def _eval(arguments: argparse.Namespace) -> int:
    steps = numbers("--steps", arguments.steps)
    if arguments.out:
        check_writable(arguments.out)
    loop = _Loop(arguments)

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
    loop = _Loop(arguments)

    from proxsae.models.contexts import strongest
    from proxsae.report import Section, Table, write_report
    from proxsae.sae.evaluation import unrolled

    sae = unrolled(loop.sae, check_count("--steps", arguments.steps, 1), None, "dictionary")
    if outside := [j for j in chosen if j >= sae.d_sae]:
        msg = f"--latents {outside[0]} must be below {sae.d_sae}: this SAE has no other"
        raise Error(msg)
    with progress("tokens") as shown:
        batches = _counted(loop.batches(), arguments.tokens, shown)
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
    loop = _Loop(arguments)

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

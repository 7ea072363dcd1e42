"""What the commands with a language model share: their arguments, the model, the SAE and the texts that are named."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from proxsae.cli.common import check_path, check_sae_there, check_there, command
from proxsae.conventions import check_count
from proxsae.studies.machine import device_named, machine, versions

MODEL = "a folder of a Hugging Face model, or a GGUF file"
TEXT = "texts: .jsonl and .csv (also .csv.zst) with a field text, prompt or content, or any text file"


def kind(kinds: Any, name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
    """Add one command of `proxsae lm`, with the arguments that all of them have."""
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


def tokens_arguments(parser: argparse.ArgumentParser, count: int) -> None:
    """Add what says how texts are cut into rows of tokens, and how many are run."""
    parser.add_argument("--tokens", type=int, default=count, metavar="N", help=f"tokens to run (default: {count})")
    parser.add_argument("--length", type=int, default=128, metavar="N", help="tokens a row (default: 128)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows run together (default: 8)")


class Loop:
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


def counted(batches: Any, total: int, shown: Any) -> Any:
    """The batches, with the tokens so far shown."""
    done = 0
    for batch in batches:
        yield batch
        done += int(batch["attention_mask"].sum())
        shown(min(done, total), total)

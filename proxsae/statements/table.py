"""A statement in one row: its code, what checks it, the planted errors that the checks catch, and its proof.

All of it is read from the registries of laws, mutants, checks and machine proofs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from proxsae.penalties import FAMILIES
from proxsae.statements.proofs import PROOFS, WHOLE, Proof
from proxsae.statements.registry import PLANTED, STATEMENTS, Statement
from proxsae.testing.mutants import MUTANTS

TITLES = {
    "proximal": "Proximal operators",
    "one_step": "One step",
    "signs": "Signs",
    "descent": "Descent and rates",
    "certificates": "Certificates",
    "hard": "Hard thresholding",
    "steps": "Step rules",
    "gradients": "Gradients",
    "sparse_steps": "Sparse steps",
    "mixed_precision": "Certified mixed precision",
    "more_steps": "More steps",
    "learned": "Learned layers",
    "false": "False statements",
}


GREEK = {"lambda": "λ", "lam": "λ", "mu": "μ", "tau": "τ", "alpha": "α", "gamma": "γ", "theta": "θ", "sigma": "σ",
         "eps": "ε"}  # fmt: skip
SIGNS = {">=": "≥", "<=": "≤", "!=": "≠", "->": "→", "<-": "←", "||": "‖", " - ": " − ", "*": "∗", "sqrt ": "√",
         "sqrt": "√", "<": "&lt;", ">": "&gt;"}  # fmt: skip
# In x_i, prox_R, |z|_(i) and D_S^T: the base, and one subscript or power
BASE = r"((?<![^\W\d_])(?:d?[^\W_]|argmin|min|max|prox|proj|grad|AbsTopK|TopK)|[|‖)∗])"
SCRIPT = re.compile(r"([_^])(\{[^}]*\}|\([^)]*\)|-\d+(?:/\d+)?|\w[^\W_]*'?|[+-])")
SCRIPTS = rf"((?:{SCRIPT.pattern})+)"


def caught(s: Statement) -> list[str]:
    """The planted errors that the checks of a statement must catch: its own, and those of its operator or its laws."""
    own = [planted.name for planted in PLANTED if planted.killed_by == s.label]
    of_operator = [m.name for m in MUTANTS if m.R.statement == s.label and m.killed_by in s.laws]
    about_an_operator = s.label in {family.statement for family in FAMILIES.values()}
    return own + (of_operator if about_an_operator else [m.name for m in MUTANTS if m.killed_by in s.laws])


def checked_by(s: Statement) -> list[str]:
    """The laws of a statement, and "its own check" where it has one."""
    return [*s.laws, *(["its own check"] if s.check else [])]


def machine(s: Statement) -> list[Proof]:
    """The machine proofs of a statement, of all that it claims or of special cases."""
    return [proof for proof in PROOFS.values() if proof.statement == s.label]


def proved_whole(s: Statement) -> bool:
    """Whether a machine proof leaves nothing of the claim to paper."""
    return any(proof.scope == WHOLE for proof in machine(s))


def proof_status(s: Statement) -> str:
    """How a statement is proved: by the solver, on paper, on paper and by the solver in special cases, by an example.

    >>> proof_status(STATEMENTS["thm-fista-rate"])
    'on paper (matrices of any size); by machine in special cases: momentum (the recursion of t only)'
    """
    if s.label.startswith("false-"):
        return "counterexample"
    if proved_whole(s):
        return f"on paper, and by machine: {_proofs(s, str)}"
    cases = f"; by machine in special cases: {_proofs(s, str)}" if machine(s) else ""
    return f"on paper ({s.on_paper}){cases}"


def box(s: Statement) -> str:
    """The box under a statement in docs/theory; the planted errors are folded."""
    if s.label.startswith("false-"):
        lines = [f"**About** {_code(s.code)}." if s.code else "", "**The counterexample is checked** by its own check."]
    else:
        lines = [
            f"**Implemented by** {_code(s.code) or 'no function of its own'}.",
            f"**Checked by** {_checks(s)}.",
            f"**Machine proof:** {_machine(s)}.",
        ]
    body = "\\\n".join(filter(None, lines))
    errors = [f"- {name}" for name in caught(s)]
    if errors:
        summary = f"<details><summary>{_errors(s)} that the check must catch</summary>"
        body = "\n".join([body, "", summary, "", *errors, "", "</details>"])
    return f":::{{admonition}} Where it stands\n:class: where\n\n{body}\n:::\n"


def markdown() -> str:
    """docs/statements.md: all statements in one table, with links to their proofs."""
    whole = sum(map(proved_whole, STATEMENTS.values()))
    cases = sum(bool(machine(s)) for s in STATEMENTS.values()) - whole
    lines = [
        "# Statements",
        "",
        "Every statement has a permanent label. Cite it as, for example, “proxsae, thm-prox-l0 (v0.1)”. Its page has",
        "the hypotheses and the full proof; its check is run by `proxsae laws` and by the tests. A machine proof",
        "(`proxsae statements --prove`) holds over all reals, in the scope that its box names: the whole claim per",
        "entry, or a special case, such as one latent.",
        "",
        f"{len(STATEMENTS)} statements. {len(PROOFS)} machine proofs prove {whole} of them whole, per entry, and "
        f"special cases of {cases} more; the other {len(STATEMENTS) - whole - cases} are proved on paper only.",
        f"{len(PLANTED) + len(MUTANTS)} planted errors must be caught by the checks.",
    ]
    page = ""
    for s in STATEMENTS.values():
        if s.page != page:
            page = s.page
            lines += [
                "",
                f"## {TITLES[page]}",
                "",
                "| statement | claim, and code | checked by | proof |",
                "|---|---|---|---|",
            ]
        errors = f"; {_errors(s)}" if caught(s) else ""
        cells = [
            f"[`{s.label}`](theory/{s.page}.md#{s.label})",
            typeset(s.claim).replace("|", "\\|") + (f"<br>{_code(s.code)}" if s.code else ""),
            _checks(s) + errors,
            _how_proved(s),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def typeset(claim: str) -> str:
    """A claim, plain text in the terminal, as HTML for a page: signs, Greek letters, subscripts and powers.

    >>> typeset("mu > 0: argmin_z mu R(z) + ||z - u||_2^2")
    'μ &gt; 0: argmin<sub>z</sub> μ R(z) + ‖z − u‖<sub>2</sub><sup>2</sup>'
    """
    text = re.sub(r"<(\w+(?: - \w+)?, \w+(?: - \w+)?)>", r"⟨\1⟩", claim)
    for plain, sign in SIGNS.items():
        text = text.replace(plain, sign)
    text = re.sub(rf"(?<![A-Za-z])({'|'.join(GREEK)})(?![A-Za-z])", lambda found: GREEK[found[1]], text)
    text = re.sub(r"\bsum(?=_| λ| r_)", "Σ", text)
    text = re.sub(BASE + SCRIPTS, lambda found: found[1] + SCRIPT.sub(_script, found[2]), text)
    return re.sub(r"\bz\+", "z<sup>+</sup>", re.sub(r"(?<!\w)-(?=[\w(])|(?<=\d)-(?=m)", "−", text))


def _script(found: re.Match[str]) -> str:
    tag = "sub" if found[1] == "_" else "sup"
    return f"<{tag}>{found[2].strip('{}').replace('-', '−')}</{tag}>"


def _how_proved(s: Statement) -> str:
    if s.label.startswith("false-"):
        return "example"
    return "paper, machine" if proved_whole(s) else "paper, machine in special cases" if machine(s) else "paper"


def _machine(s: Statement) -> str:
    if not machine(s):
        return f"none ({s.on_paper})"
    found = _proofs(s, "`{}`".format)
    return found if proved_whole(s) else f"special cases only ({s.on_paper}): {found}"


def _proofs(s: Statement, named: Callable[[str], str]) -> str:
    """The machine proofs of a statement, those of one scope together: prox-l1 (the whole claim, per entry)."""
    by_scope: dict[str, list[str]] = {}
    for proof in machine(s):
        by_scope.setdefault(proof.scope, []).append(named(proof.name))
    return "; ".join(f"{', '.join(names)} ({scope})" for scope, names in by_scope.items())


def details(s: Statement) -> str:
    """All about one statement, for the terminal."""
    lines = [
        s.label,
        f"  claim        {s.claim}",
        f"  proof        docs/theory/{s.page}.md#{s.label}",
        f"  source       {s.source}",
        f"  code         {', '.join(s.code) or '-'}",
        f"  checked by   {', '.join(checked_by(s)) or 'nothing: ' + s.no_check}",
        f"  catches      {'; '.join(caught(s)) or '-'}",
        f"  proved       {proof_status(s)}",
    ]
    return "\n".join(lines)


def _errors(s: Statement) -> str:
    count = len(caught(s))
    return f"{count} planted error{'s' * (count > 1)}"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _checks(s: Statement) -> str:
    laws = f"{'law' if len(s.laws) == 1 else 'laws'} {_code(s.laws)}" if s.laws else ""
    own = "its own check" if s.check else ""
    return " and ".join(filter(None, (laws, own))) or f"nothing: {s.no_check}"

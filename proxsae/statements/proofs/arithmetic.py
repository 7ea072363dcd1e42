"""Two arithmetics in which a claim can be written: floats at a point, and symbols for all reals, decided by z3.

z3 sees only conjunctions of polynomial inequalities, which its decision procedure for real closed fields handles well:
every `where` of a formula is split into its two branches, and denominators are multiplied out.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from proxsae.conventions import library
from proxsae.penalties.scalar import FloatArithmetic, soft

EFFORT = 20_000_000  # z3's own count of work per query, the same on every machine
PRUNING = 200_000  # the same for questions that are put only to save work
SECONDS = 60  # and a wall clock, lest anything hang
PLAIN = tuple(Fraction(n, d) for d in (1, 2, 4) for n in (0, 1, -1, 2, -2, 3, -3, 4, -4, 6, -6) if d == 1 or n % 2)


class AtPoint(FloatArithmetic):
    """The operations of a goal on floats: every symbol has its value in `point`."""

    def __init__(self, point: dict[str, Fraction]) -> None:
        super().__init__(np.float64)
        self.point = point

    def reals(self, names: str) -> list[Any]:
        """The values of the symbols `names`."""
        return [np.float64(self.point[name]) for name in names.split()]

    def both(self, *claims: Any) -> Any:
        """All of the claims."""
        return all(claims)

    def either(self, *claims: Any) -> Any:
        """At least one of the claims."""
        return any(claims)

    def equal(self, a: Any, b: Any) -> Any:
        """Whether a = b but for rounding."""
        return abs(a - b) <= 1e-9 * (1 + abs(a) + abs(b))


class RealArithmetic:
    """The operations of a goal on symbols that stand for all reals; + - * / and comparisons are z3's own.

    In z3 x / 0 is an arbitrary number, so a proof also covers divisions by 0 in branches that are not taken.
    """

    def __init__(self) -> None:
        self.z3 = library("z3", "test")
        self.context = self.z3.Context()  # its own, so that no proof depends on those before it
        quick = self.z3.Then("simplify", "tseitin-cnf", "nlsat", ctx=self.context)
        self.tactics = (quick, self.z3.Tactic("qfnra-nlsat", self.context))  # the second also takes quotients
        self.symbols: dict[str, Any] = {}
        self.roots: dict[str, Any] = {}  # by the name of a square root: what makes it one
        # Memory by the ids of terms, which are kept so that no id is used twice.
        self.fractions: dict[int, Any] = {}  # numerator and denominator
        self.plain: dict[int, Any] = {}  # terms without `where`
        self.rooted: dict[int, Any] = {}  # the square roots in a formula
        self.asked: dict[tuple[int, ...], Any] = {}  # whether formulas are impossible

    def reals(self, names: str) -> list[Any]:
        """One symbol for each of the `names`."""
        for name in names.split():
            self.symbols.setdefault(name, self.z3.Real(name, self.context))
        return [self.symbols[name] for name in names.split()]

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """a if the condition holds, else b."""
        a, b = (v if self.z3.is_expr(v) else self.z3.RealVal(v, self.context) for v in (a, b))
        return self.z3.If(condition, a, b, self.context)

    def abs(self, x: Any) -> Any:
        """|x|."""
        return self.where(x >= 0, x, -x)

    soft = soft

    def by_sign(self, x: Any, plus: Any, minus: Any) -> Any:
        """`plus` where x > 0, else `minus`."""
        return self.where(x > 0, plus, minus)

    def sqrt(self, x: Any) -> Any:
        """A fresh s >= 0 with s^2 = x where x >= 0."""
        name = f"sqrt!{len(self.roots)}"
        s = self.z3.Real(name, self.context)
        self.roots[name] = self.both(s >= 0, self.either(x < 0, s * s == x))
        return s

    def rounded(self, x: Any) -> Any:
        """Real numbers are not rounded."""
        return x

    wide = rounded

    def both(self, *claims: Any) -> Any:
        """All of the claims."""
        return self.z3.And(*claims)

    def either(self, *claims: Any) -> Any:
        """At least one of the claims."""
        return self.z3.Or(*claims)

    def equal(self, a: Any, b: Any) -> Any:
        """Whether a = b."""
        return a == b

    def check(self, formulas: list[Any], effort: int = EFFORT) -> tuple[str, Any]:
        """The verdict sat, unsat or unknown, and the solver."""
        for tactic in self.tactics:
            solver = tactic.solver()
            solver.set("rlimit", effort, "timeout", 1000 * SECONDS)
            solver.add(self._with_roots(formulas))
            verdict = str(solver.check())
            if verdict != "unknown":
                break
        return verdict, solver

    def impossible(self, formulas: list[Any]) -> bool:
        """Whether it is soon seen that the formulas contradict each other."""
        key = tuple(formula.get_id() for formula in formulas)
        if key not in self.asked:
            self.asked[key] = formulas, self.check(formulas, PRUNING)[0] == "unsat"
        return self.asked[key][1]

    def _with_roots(self, formulas: list[Any]) -> list[Any]:
        """The formulas, and what is to be known of the square roots in them."""
        formulas, named = list(formulas), set()
        for formula in formulas:  # which grows
            key = formula.get_id()
            if key not in self.rooted:
                text = formula.sexpr()
                self.rooted[key] = formula, [name for name in self.roots if name in text]
            new = [name for name in self.rooted[key][1] if name not in named]
            named.update(new)
            formulas.extend(self.roots[name] for name in new)
        return formulas

    def counterexample(self, hypotheses: list[Any], conclusion: Any) -> tuple[str, dict[str, Fraction]]:
        """The verdict on numbers that fulfil the hypotheses and not the conclusion, and these numbers where found."""
        formulas = [*hypotheses, self.z3.Not(conclusion)]
        if self.impossible(formulas):  # whole, where that is easy
            return "unsat", {}
        chosen = [formula for formula in [*formulas, *self.roots.values()] if self.has_choice(formula)]
        plain = [formula for formula in formulas if not self.has_choice(formula)]
        undecided = False
        for piece in self.pieces(plain, chosen):
            verdict, solver = self.check(piece)
            if verdict == "sat":
                return verdict, self.plainest(piece, solver.model())
            undecided |= verdict == "unknown"
        return "unknown" if undecided else "unsat", {}

    def pieces(self, known: list[Any], pending: list[Any]) -> Iterator[list[Any]]:
        """Conjunctions without `where` and without denominators that together say `known` and `pending`."""
        choice = self._choice(pending)
        if choice is None:
            yield known + [self._without_quotients(known, formula) for formula in pending]
            return
        condition, a, b = choice.children()
        if self.z3.is_true(condition) or self.z3.is_false(condition):
            taken = a if self.z3.is_true(condition) else b
            yield from self.pieces(known, self._replaced(pending, (choice, taken)))
            return
        fact = self._without_quotients(known, condition)
        sides = [(True, fact), (False, self.z3.Not(fact))]
        if self.impossible([*known, fact]):
            sides = sides[1:]
        elif self.impossible([*known, self.z3.Not(fact)]):
            sides = sides[:1]
        for value, fact in sides:
            settled = (condition, self.z3.BoolVal(value, self.context))
            yield from self.pieces([*known, fact], self._replaced(pending, settled))

    def _replaced(self, formulas: list[Any], *pairs: Any) -> list[Any]:
        return [self.z3.substitute(formula, *pairs) for formula in formulas]

    def has_choice(self, formula: Any) -> bool:
        """Whether there is a `where` in the formula."""
        return self._choice([formula]) is not None

    def _choice(self, formulas: list[Any]) -> Any:
        """A `where` that is in no other, or one in its condition; None where there is none."""
        for term in formulas:
            if term.get_id() in self.plain:
                continue
            kind, parts = term.decl().kind(), term.children()
            found = self._choice(parts[:1] if kind == self.z3.Z3_OP_ITE else parts)
            if found is not None:
                return found
            if kind == self.z3.Z3_OP_ITE:
                return term
            self.plain[term.get_id()] = term
        return None

    def _without_quotients(self, known: list[Any], formula: Any) -> Any:
        """The formula with denominators multiplied out, as far as what is known settles their signs."""
        z3 = self.z3
        if formula.num_args() == 2 and z3.is_real(formula.arg(0)):  # a comparison
            over, under = self._fraction(formula.arg(0) - formula.arg(1))
            if z3.is_rational_value(under):
                return formula.decl()(over if under.as_fraction() > 0 else -over, z3.RealVal(0, self.context))
            if self.impossible([*known, under <= 0]):
                return formula.decl()(over, z3.RealVal(0, self.context))
            if self.impossible([*known, under >= 0]):
                return formula.decl()(-over, z3.RealVal(0, self.context))
            return formula
        parts = [self._without_quotients(known, part) for part in formula.children()]
        return formula.decl()(*parts) if parts else formula

    def _fraction(self, term: Any) -> tuple[Any, Any]:
        """Numerator and denominator of a term, neither with a quotient in it."""
        if term.get_id() not in self.fractions:
            parts = [self._fraction(part) for part in term.children()]
            over, under = parts[0] if parts else (term, self.z3.RealVal(1, self.context))
            kind = term.decl().kind()
            if kind == self.z3.Z3_OP_UMINUS:
                over = -over
            for a, b in parts[1:]:
                if kind == self.z3.Z3_OP_MUL:
                    over, under = over * a, under * b
                elif kind == self.z3.Z3_OP_DIV:
                    over, under = over * b * b, under * a * b  # b stays below: it must not be 0 either
                else:
                    a = a if kind == self.z3.Z3_OP_ADD else -a
                    over, under = (over + a, under) if under.eq(b) else (over * b + a * under, under * b)
            self.fractions[term.get_id()] = term, self.z3.simplify(over, som=True), self.z3.simplify(under, som=True)
        return self.fractions[term.get_id()][1:]

    def plainest(self, formulas: list[Any], model: Any) -> dict[str, Fraction]:
        """A solution of the formulas: small whole numbers, halves and quarters as far as they go."""
        for symbol in self.symbols.values():
            for value in PLAIN:
                fixed = [*formulas, symbol == self.z3.RealVal(str(value), self.context)]
                verdict, solver = self.check(fixed, PRUNING)
                if verdict == "sat":
                    formulas, model = fixed, solver.model()
                    break
        values = {name: model.eval(symbol, model_completion=True) for name, symbol in self.symbols.items()}
        rational = self.z3.is_rational_value
        return {name: (v if rational(v) else v.approx(40)).as_fraction() for name, v in values.items()}

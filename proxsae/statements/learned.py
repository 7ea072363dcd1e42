"""Learned layers (docs/theory/learned.md): statements and their checks."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from proxsae import certificates, learned, penalties, pruning, theory
from proxsae.minimal_coherence import minimal_coherence
from proxsae.statements.plain import (
    Array,
    cases,
    clipped,
    gradient,
    hard,
    keep_largest,
    l1_objective,
    l1_optimum,
    soft,
    squared_error,
    squared_norm,
    unit,
)
from proxsae.statements.registry import Kit, insist, page, plant, refused
from proxsae.testing.compare import assert_close

statement = page("learned", on_paper="matrices of any size")
TINY = 1e-9
H = 1e-6  # of finite differences


def network(kit: Kit, D: Array, R: Any, layers: int, rule: Any, **weights: Any) -> Any:
    """An unrolled network on D, with some of its weights given; the step is given as itself, not as its logarithm."""
    import torch

    net = kit.Unrolled(torch.tensor(D), R, layers, rule)
    for name, value in weights.items():
        held = net.get_parameter(name)
        with torch.no_grad():
            held.copy_(torch.tensor(np.log(value) if name.startswith("log") else value).reshape(held.shape))
    return net


def codes(net: Any, x: Array) -> list[Array]:
    """The codes of all layers."""
    import torch

    return [point.z.detach().numpy() for point in net.walk(torch.tensor(x))]


def altered(**changes: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The constructor of networks whose weights are changed once they have started: each a function of itself and D."""

    def make(*args: Any) -> Any:
        import torch

        net = importlib.import_module("proxsae.pytorch.unrolled").Unrolled(*args)
        with torch.no_grad():
            for name, weight in net.named_parameters():
                if name in changes:
                    weight.copy_(changes[name](weight, net.D))
        return net

    return make


@statement(
    "prop-lista-starts-as-ista",
    "LearnedSteps, LISTA, LISTA-CP and TiLISTA start as ISTA at mu = 1/L; LISTA with S = 0 as the one-step encoder.",
    source="Gregor and LeCun 2010; Chen et al. 2018; Liu et al. 2019; Ablin et al. 2019",
    code=("LearnedSteps", "LISTA", "TiLISTA", "Unrolled", "pytorch.learned.start"),
)
def lista_starts_as_ista(kit: Kit, rng: np.random.Generator) -> None:
    """Every layer of every rule, in networks and in SAEs of a tied encoder, against the step in NumPy."""
    import torch

    D = rng.normal(size=(9, 6))
    x, b, mu, P = rng.normal(size=(5, 6)), rng.normal(size=6), 1 / squared_norm(D), 9
    rules = (kit.LearnedSteps(), kit.LISTA(), kit.LISTA(shared=False), kit.LISTACP(), kit.TiLISTA())
    for case in cases(kit, 0.3, 3):
        for rule in rules:
            z = np.zeros((5, P))
            for t, found in enumerate(codes(kit.Unrolled(torch.tensor(D), case.R, 4, rule), x)):
                z = case.prox(z - mu * gradient(x, D, z), mu)
                assert_close(found, z, TINY, f"{rule}, {case.name}: layer {t + 1}")
            sae = kit.SAE(6, P, case.R).double()
            with torch.no_grad():
                for held, value in ((sae.W_dec, D), (sae.W_enc, D.T), (sae.b_dec, b), (sae.b_enc, 0 * D[:, 0])):
                    held.copy_(torch.tensor(value))
            z = case.prox((x - b) @ D.T, 1.0)
            for t, point in enumerate(sae.unrolled(4, rule).walk(torch.tensor(x))):
                z = case.prox(z - mu * gradient(x - b, D, z), mu) if t else z
                assert_close(point.z.detach().numpy(), z, TINY, f"{rule}, {case.name}: step {t + 1} of an SAE")
        for rule in (kit.LISTA(start="zero"), kit.LISTA(shared=False, start="zero")):
            for found in codes(kit.Unrolled(torch.tensor(D), case.R, 3, rule), x):
                assert_close(found, case.prox(x @ D.T, 1.0), TINY, f"{rule}, {case.name}: the one-step code")
    lam, steps, factors = 0.2, rng.uniform(0.05, 0.2, 3), rng.uniform(0.5, 1.5, 3)
    W, R = D + 0.1 * rng.normal(size=D.shape), kit.L1(lam)
    tied = network(kit, D, R, 3, kit.TiLISTA(), W_step=W, log_step=steps, log_lam_factor=factors)
    Ws = steps[:, None, None] * W
    coupled = network(kit, D, R, 3, kit.LISTACP(), W_step=Ws, log_step=steps * factors)
    S = np.eye(P) - Ws @ D.T
    free = network(kit, D, R, 3, kit.LISTA(shared=False), W_step=Ws, S_step=S, log_step=steps * factors)
    for one, two, three in zip(codes(tied, x), codes(coupled, x), codes(free, x), strict=True):
        assert_close(two, one, TINY, "LISTA-CP with W_t = mu_t W against TiLISTA")
        assert_close(three, one, TINY, "LISTA with S_t = I - W_t D against TiLISTA")


def _diagonal(S: Any) -> Any:
    import torch

    return torch.eye(S.shape[-1], dtype=S.dtype)


plant("S forgets the step", "prop-lista-starts-as-ista", Unrolled=altered(S_step=lambda S, D: _diagonal(S) - D @ D.T))
plant("S = 0 is S = I", "prop-lista-starts-as-ista", Unrolled=altered(S_step=lambda S, D: _diagonal(S).expand_as(S)))
plant("W without its step", "prop-lista-starts-as-ista", Unrolled=altered(W_step=lambda W, D: D.expand_as(W)))
plant(
    "thresholds without their step",
    "prop-lista-starts-as-ista",
    Unrolled=altered(log_lam_factor=lambda f, D: f + math.log(certificates.lipschitz(D))),
)
plant(
    "the ISTA start is S = 0",
    "prop-lista-starts-as-ista",
    LISTA=lambda shared=True, start="ista": learned.LISTA(shared, "zero"),
)


def one_or_two(P: int, B: float) -> Array:
    """The codes B e_i, B/2 e_i and B (e_i + e_j), as rows."""
    e = np.eye(P)
    pairs = [e[i] + e[j] for i, j in itertools.combinations(range(P), 2)]
    return B * np.array([*e, *(e / 2), *pairs])


def simplex(n: int) -> Array:
    """n unit vectors in R^(n - 1) of inner products -1 / (n - 1)."""
    vectors = np.eye(n) - 1 / n
    return unit(vectors @ np.linalg.svd(vectors)[2][: n - 1].T)


def off_identity(S: Array, W: Array, D: Array) -> float:
    """The largest entry of |S + W D^T - I|, atoms as rows."""
    return float(np.abs(S + W @ D.T - np.eye(len(D))).max())


@statement(
    "thm-coupling-is-necessary",
    "Layers z+ = soft(S_t z + W_t x, theta_t) that find all 2-sparse z* in the limit: S_t - (I - W_t D), theta_t -> 0.",
    source="Chen, Liu, Wang and Yin 2018, Theorem 1 (number not verified) for the limit; the bounds are our own",
    code=("theory.coupling_defect", "LISTA", "LISTACP"),
)
def coupling_is_necessary(kit: Kit, rng: np.random.Generator) -> None:
    """The bounds in networks that are coupled, nearly coupled, and ISTA; the worst layers; one layer repeated."""

    def look(what: str, D: Array, R: Any, lam: float, B: float, net: Any) -> list[float]:
        true, before, errors = one_or_two(len(D), B), B, [B]
        weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
        for t, z in enumerate(codes(net, true @ D)):
            S, W = weights["S_step"][t], weights["W_step"][t]
            after = float(np.abs(z - true).max())
            bound = kit.coupling_defect(before, after, float(np.abs(S).sum(axis=1).max()), B)
            slack = bound * TINY + 1e-13 * len(D)
            found = off_identity(S, W, D)
            insist(found <= bound + slack, f"{what}, layer {t + 1}: |S + WD - I| = {found} is above {bound}")
            theta = lam * float(np.exp(weights["log_step"][t])) if "log_step" in weights else 0.0
            insist(theta <= 0.75 * B * bound + slack, f"{what}, layer {t + 1}: theta = {theta} is above 3/4 B {bound}")
            before = after
            errors.append(after)
        return errors

    rule, B, T = kit.LISTA(shared=False), 2.0, 20
    D, P = simplex(6), 6
    q = 3 / 5
    thetas = 2 * B / 5 * q ** np.arange(T)
    for nonneg, noise in itertools.product((False, True), (0.0, 1e-3, 1e-2)):
        S = np.eye(P) - D @ D.T + noise * rng.normal(size=(T, P, P)) * q ** np.arange(T)[:, None, None]
        R = kit.L1(1.0, nonneg)
        net = network(kit, D, R, T, rule, S_step=S, W_step=np.broadcast_to(D, (T, P, 5)), log_step=thetas)
        errors = look(f"coupled up to {noise}", D, R, 1.0, B, net)
        insist(errors[-1] < 0.1 * errors[1], f"errors {errors} do not fall, so that nothing is tried")
    for R in (kit.KSparse(2), kit.L0(1e-3)):
        S = np.eye(P) - 0.8 * D @ D.T + 1e-3 * rng.normal(size=(T, P, P))
        steps = {} if isinstance(R, penalties.KSparse) else {"log_step": np.full(T, 0.8)}
        net = network(kit, D, R, T, rule, S_step=S, W_step=np.broadcast_to(0.8 * D, (T, P, 5)), **steps)
        look(f"{R}", D, R, 0.0, B, net)
    for lam in (0.5, 0.05):
        R = kit.L1(lam)
        look("ISTA", D, R, lam, B, kit.Unrolled(_tensor(D), R, 60, rule))
    one, R = np.ones((1, 1)), kit.L1(1.0)
    for eta in (0.1, 0.6):  # the bounds are attained by a layer without S, and errors ahead of a layer count as well
        net = network(kit, one, R, 1, rule, S_step=0.0 * one, W_step=one + 4 * eta / B, log_step=3 * eta)
        errors = look("the worst layer", one, R, 1.0, B, net)
        assert_close(errors[1], eta, 1e-12, "the error of the worst layer")
        bound = kit.coupling_defect(B, eta, 0.0, B)
        assert_close(bound, 4 * eta / B, 1e-12, "the bound that the worst layer attains")
    N, Sq = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
    first = np.eye(3) + 0.05 * N
    weights = {"S_step": np.array([0 * N, Sq]), "W_step": np.array([first, np.eye(3) - Sq @ first])}
    net = network(kit, np.eye(3), R, 2, rule, log_step=np.full(2, 1e-15), **weights)
    errors = look("a layer that is right of wrong codes", np.eye(3), R, 1.0, B, net)
    insist(errors[2] < 1e-12, "two layers without threshold should find all codes")
    R = kit.L1(1.0, nonneg=True)
    net = network(kit, one, R, 1, rule, S_step=0.0 * one, W_step=-10.0 * one, log_step=1e-15)
    look("a layer so wrong that its weights can be any", one, R, 1.0, B, net)
    D = unit(rng.normal(size=(5, 3)))
    for lam, T in itertools.product((1e-12, 0.1), (10, 400)):  # one layer, repeated
        *_, z = codes(kit.Unrolled(_tensor(D), kit.L1(lam), T, kit.LISTA()), one_or_two(5, B) @ D)
        insist(np.abs(z - one_or_two(5, B)).max() > 0.1, f"{T} times one layer finds all codes of two entries")


def _tensor(a: Array) -> Any:
    import torch

    return torch.tensor(a)


def _transposed(*args: Any) -> Any:
    base = importlib.import_module("proxsae.pytorch.unrolled").Unrolled

    class Transposed(base):  # type: ignore[misc, valid-type]
        def walk(self, x: Any) -> Any:
            self.S_step.data = self.S_step.data.mT.contiguous()
            yield from list(super().walk(x))
            self.S_step.data = self.S_step.data.mT.contiguous()

    return Transposed(*args)


plant(
    "half the bound",
    "thm-coupling-is-necessary",
    coupling_defect=lambda *given: theory.coupling_defect(*given) / 2,
)
plant(
    "the error ahead of the layer does not count",
    "thm-coupling-is-necessary",
    coupling_defect=lambda before, after, norm, largest: theory.coupling_defect(0.0, after, norm, largest),
)
plant(
    "claimed of any layer, however wrong",
    "thm-coupling-is-necessary",
    coupling_defect=lambda before, after, norm, largest: 4 * (after + norm * before) / largest,
)
plant("S is transposed", "thm-coupling-is-necessary", Unrolled=_transposed)


def least_by_linear_program(D: Array, i: int) -> float:
    """min t  subject to  |w^T d_j| <= t for j != i  and  w^T d_i = 1."""
    from scipy.optimize import linprog

    others, t = np.delete(D, i, 0), -np.ones((len(D) - 1, 1))
    A = np.block([[others, t], [-others, t]])
    cost, free = np.append(np.zeros(D.shape[1]), 1.0), [(None, None)] * (D.shape[1] + 1)
    found = linprog(cost, A, np.zeros(len(A)), np.append(D[i], 0.0)[None], [1.0], free)
    return float(found.fun)


@statement(
    "prop-generalised-coherence",
    "The least max_{j != i} |w^T d_j| with w^T d_i = 1 is 1 / min ||a||_1 over sum_{j != i} a_j d_j = d_i.",
    source="Liu, Chen, Wang and Yin 2019 for the problem; linear programming duality",
    code=("minimal_coherence",),
)
def generalised_coherence(kit: Kit, rng: np.random.Generator) -> None:
    """Both bounds against a linear program, what W reaches, the Welch bound, and least squares; parallel atoms."""
    far = np.append(rng.normal(size=(5, 3)), np.zeros((5, 1)), axis=1)
    far = np.append(far, [[0.3, -0.2, 0.1, 1.0]], axis=0)  # the last atom is not in the span of the others
    for D in (unit(rng.normal(size=(9, 4))), rng.normal(size=(7, 5)), rng.normal(size=(4, 6)), far, simplex(5)):
        P, d = D.shape
        W, upper, lower = kit.minimal_coherence(D, tol=1e-5)
        products = np.abs(W @ D.T)
        insist(np.abs((W * D).sum(axis=1) - 1).max() < TINY, "w_i^T d_i is not 1")
        np.fill_diagonal(products, 0)
        insist(products.max(axis=1) <= upper, "W has a larger coherence than is said")
        insist(upper - lower <= 1e-5, "the bounds are further apart than was asked")
        for i in range(P):
            least = least_by_linear_program(D, i)
            insist(lower[i] - TINY <= least <= upper[i] + TINY, f"the least of row {i} is {least}: not between them")
        if d <= P:
            insist(upper.max() >= np.sqrt((P - d) / (d * (P - 1))), "the coherence is below the Welch bound")
        norms = np.linalg.norm(D, axis=1)
        if np.ptp(norms) < TINY:
            insist(upper.max() <= kit.coherence(D) + 1e-5, "the weights are worse than the atoms themselves")
        M = D.T @ D
        if np.linalg.matrix_rank(M) == d:
            V = np.linalg.solve(M, D.T).T
            V /= (V * D).sum(axis=1, keepdims=True)
            excess = ((W @ D.T) ** 2).sum(axis=1) - ((V @ D.T) ** 2).sum(axis=1)
            insist(excess >= -TINY, "there are weights of a smaller square sum than those of least squares")
    D = unit(rng.normal(size=(6, 4)))
    D[4] = -D[1]
    insist(refused(kit.minimal_coherence, D), "atoms that are parallel have weights of coherence below 1")


def _least_squares(D: Array, tol: float = 1e-3) -> Any:
    W = np.linalg.pinv(D).T
    W = W / (W * D).sum(axis=1, keepdims=True)
    products = np.abs(W @ D.T)
    np.fill_diagonal(products, 0)
    return W, products.max(axis=1), products.max(axis=1)


def _with_upper(change: Callable[[Array], Array]) -> Callable[..., Any]:
    def found(D: Array, tol: float = 1e-3) -> Any:
        W, upper, lower = minimal_coherence(D, tol)
        return W, change(upper), lower

    return found


plant("the weights of least squares", "prop-generalised-coherence", minimal_coherence=_least_squares)
plant(
    "the lower bound as what W reaches", "prop-generalised-coherence", minimal_coherence=_with_upper(lambda u: 0.9 * u)
)
plant("the mean over the rows", "prop-generalised-coherence", minimal_coherence=_with_upper(lambda u: 0 * u + u.mean()))


@statement(
    "thm-alista-rate",
    "x - b = Dz*, ||z*||_0 <= k, |z*| <= B, w_i^T d_i = 1, theta_t = mu m k B q^t: no false support, error <= k B q^t.",
    source="Liu, Chen, Wang and Yin 2019, Theorem 1 (number not verified); thresholds and sharpness are our own",
    code=("theory.alista_rate", "theory.alista_threshold", "ALISTA"),
)
def alista_rate(kit: Kit, rng: np.random.Generator) -> None:
    """Networks with computed and with other weights, on codes as large as allowed; codes on which it is attained."""

    def run(D: Array, W: Array | None, m: float, true: Array, k: int, step: float, nonneg: bool) -> None:
        B, T, m = float(np.abs(true).max()), 12, m * (1 + TINY)  # so that rounding passes no threshold
        thetas = np.array([kit.alista_threshold(m, k, step, B, t) for t in range(1, T + 1)])
        R, lam = kit.L1(0.1, nonneg), 0.1
        weights = {"log_step": np.full(T, step), "log_lam_factor": thetas / step / lam}
        weights |= {} if W is None else {"W_step": W[None]}
        tight = k == 1 and step <= 1
        for t, z in enumerate(codes(network(kit, D, R, T, kit.ALISTA(), **weights), true @ D), 1):
            error, bound = np.abs(z - true).sum(axis=1), kit.alista_rate(m, k, step, B, t)
            if bound < 1e-5 * B:  # where rounding is of the size of the error
                break
            false = (z != 0) & (true == 0)
            insist(not false.any(), f"k = {k}, mu = {step}, layer {t}: latents {np.argwhere(false)[:, 1]} are false")
            insist(error <= bound * (1 + TINY), f"k = {k}, mu = {step}, layer {t}: error {error.max()} above {bound}")
            attained = error.max() >= bound * (1 - 1e-6)
            insist(attained or not tight, f"k = {k}, mu = {step}, layer {t}: {error.max()} does not attain {bound}")

    def sparse(P: int, k: int, nonneg: bool) -> Array:
        true = np.zeros((20, P))
        for row in true:
            row[rng.choice(P, k, replace=False)] = rng.choice([1.0, -1.0, 0.3], k)
        return np.abs(true) if nonneg else true

    for D, nonneg in itertools.product((unit(rng.normal(size=(12, 8))), simplex(8)), (False, True)):
        _, upper, _ = kit.minimal_coherence(D)
        m = float(upper.max())
        for k, step in itertools.product((1, 2, 3), (0.5, 1.0, 1.1)):
            run(D, None, m, sparse(len(D), k, nonneg), k, step, nonneg)
    D = unit(np.eye(9)[:7] + 0.05 * rng.normal(size=(7, 9)))  # other weights: those of the atoms
    products = np.abs(D @ D.T) - np.eye(7)
    for k, step in itertools.product((1, 2, 4), (0.7, 1.0, 1.2)):
        run(D, D, float(products.max()), sparse(7, k, False), k, step, False)
    for k, step in itertools.product((2, 3), (0.6, 1.0)):  # k equal entries, of atoms at -m: attained as well
        n = 2 * k + 2
        D, m = simplex(n), 1 / (n - 1)
        true = np.zeros(n)
        true[:k] = 2.0
        z = np.zeros(n)
        for t in range(1, 8):
            z = soft(z - step * gradient(true @ D, D, z), kit.alista_threshold(m, k, step, 2.0, t))
            bound = kit.alista_rate(m, k, step, 2.0, t)
            assert_close(
                float(np.abs(z - true).sum()), bound, 1e-7, f"k = {k}, mu = {step}, layer {t}: the worst error"
            )
    for k, m in itertools.product((1, 2, 5), (0.05, 0.3, 0.9)):  # where it falls
        edge = 2 / (1 + m * (2 * k - 1))
        for step in (0.5, 0.98 * edge, 1.02 * edge):
            falls = kit.alista_rate(m, k, step, 1.0, 2) < kit.alista_rate(m, k, step, 1.0, 1)
            want = k < (1 + 1 / m) / 2 and step < edge
            insist(falls == want, f"k = {k}, m = {m}, mu = {step}: the bound falls {falls}, but should be {want}")


def _rate(change: Callable[..., tuple[float, int, float]]) -> Callable[..., float]:
    def bound(coherence: float, k: int, step: float, largest: float, t: int) -> float:
        return theory.alista_rate(*change(coherence, k, step), largest, t)

    return bound


def _theta(change: Callable[..., float]) -> Callable[..., float]:
    def threshold(coherence: float, k: int, step: float, largest: float, t: int) -> float:
        return change(theory.alista_threshold(coherence, k, step, largest, t), coherence, k, t)

    return threshold


plant("the threshold without the coherence", "thm-alista-rate", alista_threshold=_theta(lambda h, m, k, t: h / m))
plant("half the threshold", "thm-alista-rate", alista_threshold=_theta(lambda h, m, k, t: h / 2))
plant("the threshold does not count the entries", "thm-alista-rate", alista_threshold=_theta(lambda h, m, k, t: h / k))
plant(
    "the threshold of the layer before",
    "thm-alista-rate",
    alista_threshold=lambda m, k, step, B, t: theory.alista_threshold(m, k, step, B, max(1, t - 1)),
)
plant(
    "the rate for k - 1 entries",
    "thm-alista-rate",
    alista_rate=_rate(lambda m, k, step: (m, max(1, k - 1), step)),
)
plant(
    "mu beyond 1 does no harm",
    "thm-alista-rate",
    alista_rate=_rate(lambda m, k, step: (m, k, min(step, 1.0))),
)
plant("the coherence of other weights", "thm-alista-rate", minimal_coherence=_with_upper(lambda u: 0.5 * u))


@statement(
    "prop-leave-one-out",
    "p_j = d_j^T r + ||d_j||^2 z_j leaves j out; pruning where |p_j| <= tau is a step of L0(tau^2/2) on the support.",
    source="a comment to chanind 2026 for the pruning; own for the claim",
    code=("leave_one_out",),
    on_paper="matrices of any size",
)
def leave_one_out(kit: Kit, rng: np.random.Generator) -> None:
    """Against residuals that leave out one latent in turn, errors without it, and a step; arrays and tensors."""
    for normed, nonneg, tau in itertools.product((True, False), (False, True), (0.0, 0.4)):
        D = rng.normal(size=(8, 5))
        D = unit(D) if normed else D
        b, x, z = rng.normal(size=5), rng.normal(size=(30, 5)), keep_largest(rng.normal(size=(30, 8)), 4)
        z = np.abs(z) if nonneg else z
        pruned = kit.leave_one_out(x, D, z, tau, bias=b)
        assert_close(kit.leave_one_out(*map(_tensor, (x, D, z)), tau, bias=_tensor(b)).numpy(), pruned, 0.0, "tensors")
        for j in range(8):
            without = z.copy()
            without[:, j] = 0
            p = (x - b - without @ D) @ D[j]
            keep = (z[:, j] != 0) & (np.sign(p) == np.sign(z[:, j])) & (np.abs(p) > tau)
            sure = np.abs(np.abs(p) - tau) > TINY
            insist(((pruned[:, j] != 0) == keep)[sure], f"tau = {tau}: latent {j} is kept wrongly")
            assert_close(pruned[keep & sure, j], z[keep & sure, j], 0.0, "what is kept")
            rise = squared_error(x - b, D, without) - squared_error(x - b, D, z)
            assert_close(rise, z[:, j] * (2 * p - (D[j] ** 2).sum() * z[:, j]), TINY, "the error without it")
            insist((rise <= TINY)[p * z[:, j] <= 0], "a latent of the wrong sign is needed")
        step = hard(clipped(z - gradient(x - b, D, z), nonneg), tau)
        lam = kit.L0(tau**2 / 2, nonneg).prox(z - gradient(x - b, D, z))
        assert_close(lam, step, TINY, "the prox of the step")
        same = (lam != 0) & (z != 0) & (np.sign(lam) == np.sign(z))
        insist(not normed or np.array_equal(same, pruned != 0), "pruning is not the step on the support")


def _pruned(rule: Callable[..., Any]) -> Callable[..., Any]:
    def pruned(x: Any, D: Any, z: Any, tau: float, bias: Any = 0.0) -> Any:
        r = x - bias - z @ D
        keep = rule(r @ D.T, (D * D).sum(-1), z, tau)
        return z * keep

    return pruned


plant("without the latent's own part", "prop-leave-one-out", leave_one_out=_pruned(lambda g, n, z, tau: abs(g) > tau))
plant(
    "only positive correlations count",
    "prop-leave-one-out",
    leave_one_out=_pruned(lambda g, n, z, tau: g + n * z > tau),
)
plant(
    "the norms of the atoms are forgotten",
    "prop-leave-one-out",
    leave_one_out=_pruned(lambda g, n, z, tau: (g + z) * z > tau * abs(z)),
)
plant(
    "an entry whose sign is wrong is kept",
    "prop-leave-one-out",
    leave_one_out=_pruned(lambda g, n, z, tau: abs(g + n * z) > tau),
)
plant(
    "the bias is forgotten",
    "prop-leave-one-out",
    leave_one_out=lambda x, D, z, tau, bias=None: pruning.leave_one_out(x, D, z, tau),
)


@statement(
    "prop-gradient-at-infinity",
    "At steps = inf an L1 SAE has the gradients -r z*^T in D and -r in b; at a gap G the latter is off by sqrt(2G).",
    source="own, from Danskin's theorem",
    code=("sae.encoding.Encoding",),
    on_paper="matrices of any size; a limit",
)
def gradient_at_infinity(kit: Kit, rng: np.random.Generator) -> None:
    """Gradients of an SAE against differences of the exact least value; of codes with a gap, how far they are off."""
    import torch

    lam, n = 0.3, 3
    for nonneg in (False, True):
        D, b, x = rng.normal(size=(5, 3)), rng.normal(size=3), 2 * rng.normal(size=(n, 3))

        def least(move: Array, x: Array = x, D: Array = D, b: Array = b, nonneg: bool = nonneg) -> float:
            D, b = (D + move, b) if move.ndim == 2 else (D, b + move)
            best = [l1_objective(row - b, D, l1_optimum(row - b, D, lam, nonneg), lam) for row in x]
            return float(np.mean(best))

        R = kit.L1(lam, nonneg)
        sae = kit.SAE(3, 5, R, math.inf).double()
        with torch.no_grad():
            sae.W_dec.copy_(torch.tensor(D))
            sae.b_dec.copy_(torch.tensor(b))
        z = sae.encode(torch.tensor(x))
        (0.5 * (sae.decode(z) - torch.tensor(x)).square().sum(dim=1) + R.value(z)).mean().backward()
        found = sae.W_dec.grad.numpy(), sae.b_dec.grad.numpy()
        best = np.array([l1_optimum(row - b, D, lam, nonneg) for row in x])
        r = x - b - best @ D
        assert_close(found[0], -best.T @ r / n, 2e-3, f"nonneg = {nonneg}: the gradient in D is not -r z^T")
        assert_close(found[1], -r.mean(axis=0), 2e-3, f"nonneg = {nonneg}: the gradient in b is not -r")
        insist(sae.W_enc.grad is None or not sae.W_enc.grad.any(), "the encoder has a gradient")
        for slope_of in found:
            move = rng.normal(size=slope_of.shape)
            slope = (least(H * move) - least(-H * move)) / (2 * H)
            assert_close(float((slope_of * move).sum()), slope, 5e-3, "against differences of the least value")
        for row, star, true in zip(x, best, r, strict=True):
            for scale, t in itertools.product((0.01, 0.3), range(4)):
                other = star * (1 + scale) if not t else clipped(star + scale * rng.normal(size=5), nonneg)
                gap = float(kit.duality_gap(row, D, other, R, bias=b))
                exact = float(l1_objective(row - b, D, other, lam) - l1_objective(row - b, D, star, lam))
                held = row - b - other @ D
                off = np.linalg.norm(held - true)
                insist(off <= np.sqrt(2 * gap) * (1 + 1e-6), f"the gradient in b is off by {off}, at a gap of {gap}")
                if not t:
                    assert_close(np.sqrt(2 * max(exact, 0.0)), off, 1e-3, "a code on the same face attains the bound")
                U = (other != 0) | (star != 0)
                sigma = float(np.linalg.eigvalsh(D[U] @ D[U].T)[0]) if U.any() else 0.0
                if sigma > 1e-6:
                    bound = np.sqrt(2 * gap) * (np.linalg.norm(other) + np.linalg.norm(true) / np.sqrt(sigma))
                    off = np.linalg.norm(np.outer(other, held) - np.outer(star, true))
                    insist(off <= bound * (1 + 1e-6), f"the gradient in D is off by {off}, more than {bound}")


def _sae(*given: Any) -> Any:
    return importlib.import_module("proxsae.sae").SAE(*given)


plant("stops after three steps", "prop-gradient-at-infinity", SAE=lambda d, P, R, steps: _sae(d, P, R, 3))
plant(
    "the codes are those of twice lam",
    "prop-gradient-at-infinity",
    SAE=lambda d, P, R, steps: _sae(d, P, penalties.L1(2 * R.lam, R.nonneg), steps),
)
plant(
    "a quarter of the gap",
    "prop-gradient-at-infinity",
    duality_gap=lambda x, D, z, R, bias: 0.25 * certificates.duality_gap(x, D, z, R, bias),
)

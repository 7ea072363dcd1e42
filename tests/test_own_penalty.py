"""A penalty of one's own, however it is written, works on both backends or is refused in one sentence."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import testing as pt
from proxsae.penalties import Separable
from proxsae.pytorch.arithmetic import sqrt
from proxsae.studies import density


class Renamed(px.L1):
    """A subclass that changes nothing."""


class Doubled(px.L1):
    """A subclass with another formula: twice the weight."""

    @staticmethod
    def entry_value(o, z, lam):
        return 2 * lam * o.abs(z)

    @staticmethod
    def entry_prox(o, u, mu, lam):
        return px.L1.entry_prox(o, u, 2 * mu, lam)

    def _slope(self, z):
        return 2 * super()._slope(z)


@dataclass(frozen=True, eq=False)
class Excess(Separable):
    """A family that px does not have: R(z) = sum_i lam_i max(|z_i| - 1, 0)."""

    lam: object
    nonneg: bool = False

    convex = True
    domain = {"lam": ">= 0 per latent"}  # noqa: RUF012

    @staticmethod
    def entry_value(o, z, lam):
        size = o.abs(z)
        return o.where(size > 1, lam * (size - 1), 0 * size)

    @staticmethod
    def entry_prox(o, u, mu, lam):
        size, t = o.abs(u), o.rounded(mu * lam)
        kept = o.where(size <= 1, size, o.where(size <= 1 + t, 1 + 0 * size, size - t))
        return o.where(size == 0, 0, o.where(u > 0, kept, -kept))


class Ball(px.Penalty):
    """Any R, in NumPy only: the indicator of ||z|| <= 1."""

    convex = indicator = True

    def _value(self, z):
        return np.where(np.linalg.norm(z, axis=-1) <= 1 + 1e-6, 0.0, np.inf)

    def _prox(self, u, step):
        norm = np.linalg.norm(u, axis=-1, keepdims=True)
        return np.where(norm <= 1, u, u / np.where(norm > 1, norm, 1)).astype(u.dtype) + 0


class TorchBall(Ball):
    """The same with its torch formula."""

    def _torch_value(self, z):
        return torch.where(z.norm(dim=-1) <= 1 + 1e-6, 0.0, torch.inf)

    def _torch_prox(self, u, step):
        return u / u.norm(dim=-1, keepdim=True).clamp(min=1) + 0


class OneSided(px.KSparse):
    """A k-sparse subclass that keeps the first k entries, in NumPy and in torch."""

    def _prox(self, u, step):
        return np.where(np.arange(u.shape[-1]) < self.k, u, 0).astype(u.dtype) + 0

    def _torch_prox(self, u, step):
        return torch.where(torch.arange(u.shape[-1]) < self.k, u, 0) + 0


BOTH = {"subclass": Renamed(0.5), "other formula": Doubled(0.25), "family": Excess(0.5), "penalty": TorchBall()}


def problem():
    data = px.data.planted(n=12, d_in=8, d_sae=16, k=3, seed=0)
    return data.x, data.D


@pytest.mark.parametrize("R", BOTH.values(), ids=BOTH)
def test_ista_and_solve_run_on_both_backends_and_agree(R):
    x, D = problem()
    for call in (lambda x, D: px.ista(x, D, R, 6), lambda x, D: px.solve(x, D, R, tol=1e-10, max_steps=2000)):
        got, want = call(torch.tensor(x), torch.tensor(D)), call(x, D)
        pt.assert_close(got.codes, torch.tensor(want.codes), 1e-5)
        assert bool(got.codes.any())
    lower = px.ista(torch.tensor(x), torch.tensor(D), R, 6).objective.diff(dim=0)
    assert float(lower[1:].max()) <= 1e-12


@pytest.mark.parametrize("R", BOTH.values(), ids=BOTH)
def test_the_checker_judges_it_on_both_backends(R):
    claims = {} if not isinstance(R, Ball) else {"laws": ["form", "rows", "firm", "monotone", "gradient"]}
    for backends in (pt.NUMPY, pt.torch_backends()):
        laws = [law for law in claims.get("laws", ()) if law != "gradient" or backends is not pt.NUMPY] or None
        assert len(pt.check_prox(R, backends=backends, n=40, laws=laws)) >= 6


def test_the_checker_sees_a_wrong_one():
    class Wrong(Doubled):
        @staticmethod
        def entry_prox(o, u, mu, lam):
            return px.L1.entry_prox(o, u, mu, lam)

    for backends in (pt.NUMPY, pt.torch_backends()):
        with pytest.raises(pt.LawViolation, match="law 'optimal'"):
            pt.check_prox(Wrong(0.5), backends=backends, n=40, laws=["optimal"])


@pytest.mark.parametrize("R", BOTH.values(), ids=BOTH)
def test_an_sae_encodes_and_trains_with_it(R):
    x = torch.tensor(problem()[0], dtype=torch.float32)
    torch.manual_seed(0)
    sae = px.SAE(8, 16, R, steps=3)
    z = sae.encode(x)
    first = sae.unrolled(1).encode(x)
    pt.assert_close(first, R.prox(sae.pre_activations(x)), 1e-6)
    assert z.shape == (12, 16)
    px.train(sae, x, steps=3, batch_size=4, lr=1e-3, seed=0)
    assert all(bool(p.isfinite().all()) for p in sae.parameters())


def test_an_sae_never_takes_the_formula_of_the_parent():
    """`KSparse` has an encoder on supports; a subclass that keeps other entries must not run it."""
    x = torch.tensor(problem()[0], dtype=torch.float32)
    sae = px.SAE(8, 16, OneSided(3), steps=2)
    assert not sae.encode(x)[:, 3:].any()
    pt.assert_same(sae.encode_sparse(x).to_dense(), sae.encode(x))


def test_certificates_of_l1_are_refused_to_another_formula():
    x, D = problem()
    z = np.zeros((12, 16))
    assert (px.duality_gap(x, D, z, Renamed(0.5)) > 0).all()
    with pytest.raises(px.Error, match="Doubled"):
        px.duality_gap(x, D, z, Doubled(0.5))
    assert (px.solve(x, D, Renamed(0.5)).gap == px.solve(x, D, px.L1(0.5)).gap).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda x, D, R: R.prox(x),
        lambda x, D, R: R.value(x),
        lambda x, D, R: px.ista(x, D, R, 2),
        lambda x, D, R: px.solve(x, D, R),
        lambda x, D, R: px.SAE(8, 16, R).encode(x.float()),
        lambda x, D, R: px.train(px.SAE(8, 16, R), x.float(), steps=1),
        lambda x, D, R: pt.check_prox(R, backends=pt.torch_backends()),
    ],
)
def test_numpy_alone_is_refused_to_tensors_in_a_sentence_that_says_what_to_write(call):
    x, D = map(torch.tensor, problem())
    with pytest.raises(px.Error, match=r"written for NumPy only: give Ball a method _torch_(prox|value)") as error:
        call(x, D, Ball())
    assert "\n" not in str(error.value)


def test_a_numpy_formula_over_a_torch_one_is_refused_and_not_ignored():
    class Half(px.KSparse):
        def _prox(self, u, step):
            return super()._prox(u, step) / 2

    u = np.array([1.0, 3.0])
    assert Half(1).prox(u).tolist() == [0, 1.5]
    with pytest.raises(px.Error, match="give Half a method _torch_prox"):
        Half(1).prox(torch.tensor(u))


@pytest.mark.parametrize("name", pt.OPERATORS)
def test_a_subclass_that_changes_nothing_is_its_parent(name):
    R = pt.OPERATORS[name]
    mine = type("Mine", (type(R),), {})(**vars(R))
    for u in pt.lattice.rows(R, 0.7, np.float64, 10):
        pt.assert_same(mine.prox(torch.tensor(u), 0.7), R.prox(torch.tensor(u), 0.7))
        pt.assert_same(mine.value(torch.tensor(u)), R.value(torch.tensor(u)))


def test_the_methods_with_the_checks_cannot_be_overridden():
    with pytest.raises(px.Error, match="Mine overrides prox: override _prox"):

        class Mine(px.L1):
            def prox(self, u, step=1.0):
                return u


def test_the_domain_is_checked_of_a_family_of_ones_own():
    with pytest.raises(px.Error, match="Excess: lam=-1"):
        Excess(-1)
    with pytest.raises(px.Error, match="Renamed: lam=-1"):
        Renamed(-1)


def test_gradients_of_a_family_of_ones_own():
    lam = torch.tensor([0.5, 0.0, 0.25], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([[3.0, -2.5, 1.1]], dtype=torch.float64, requires_grad=True)
    Excess(lam).prox(u, 2.0).sum().backward()
    assert u.grad.tolist() == [[1, 1, 0]]
    assert lam.grad.tolist() == [-2, 2, 0]
    pt.assert_same(Excess(0.5).prox(u.detach()), torch.tensor(Excess(0.5).prox(u.detach().numpy())))


def test_an_sae_that_is_saved_with_it_says_when_loaded_how_to_go_on(tmp_path):
    px.SAE(8, 16, Excess(0.5)).save(tmp_path / "sae")
    with pytest.raises(px.Error, match="Excess"):
        px.load(tmp_path / "sae")


def test_a_penalty_that_is_no_dataclass_cannot_be_written_and_says_what_it_needs(tmp_path):
    class Plain(Separable):
        """|z|, without the decorator of a dataclass."""

        @staticmethod
        def entry_value(o, z):
            return o.abs(z)

        @staticmethod
        def entry_prox(o, u, mu):
            return o.where(o.abs(u) <= o.rounded(mu), 0, o.where(u > 0, u - o.rounded(mu), u + o.rounded(mu)))

    sae = px.SAE(8, 16, Plain())
    px.train(sae, np.eye(8, dtype=np.float32), 2, batch_size=4, progress=False)
    with pytest.raises(px.Error, match=r"Plain cannot be written to a file: its class needs @dataclass"):
        sae.save(tmp_path / "sae")
    assert not list(tmp_path.iterdir())


def test_a_penalty_that_is_no_dataclass_cannot_be_given_another_lam():
    class Plain(px.Penalty):
        """lam times the number of latents, which is enough to be asked for another lam."""

        lam = 0.5

        def _value(self, z):
            return np.full(z.shape[:-1], self.lam * z.shape[-1])

        def _prox(self, u, step):
            return u.copy()

    sae = px.SAE(8, 16, Plain())
    for call in (lambda: sae.scale_lam(2.0), lambda: density.with_lam(sae, 2.0)):
        with pytest.raises(px.Error, match=r"Plain cannot be given another lam: its class needs @dataclass"):
            call()


def test_a_root_of_bfloat16_is_a_root():
    u = torch.tensor([4.0, 2.0, 0.0], dtype=torch.bfloat16)
    px.testing.assert_same(sqrt(u), torch.tensor([2.0, 2**0.5, 0.0], dtype=torch.bfloat16))

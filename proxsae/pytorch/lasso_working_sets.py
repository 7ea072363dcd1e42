"""L1 problems of many rows at once: working sets, found by one product with D and solved through small Gram matrices.

    min_z  1/2 ||c - D z||^2 + sum_j lam_j |z_j|            (z >= 0 when `nonneg`)

The solution of a row uses few atoms, so each row has a working set of few atoms.  One round, for all open rows:

1. One product D^T r finds the atoms outside the working set that violate |d_j^T r| <= lam_j (thm-l1-optimality).  It
   also gives a distance `reach`: while r moves by less, no other atom violates.
2. The problem on the support and these atoms is solved in float64 through their Gram matrix: proximal gradient with
   momentum finds the support, a Newton step solves for it (Cholesky), a line search keeps the objective from rising.
3. A row leaves when the duality gap (thm-duality-gap) of the codes that will be returned is small enough, and no atom
   outside the working set violates, as `reach` or the product of the next round shows.

The product is in float32, unless the Gram matrix of the whole dictionary is formed: it only selects, and its rounding
error is bounded.  Atoms are scaled to unit length, so that codes here are ||d_j|| z_j.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from proxsae.certificates import FAINT, UNIT, certify, lengths, not_faint
from proxsae.penalties import L1
from proxsae.pytorch.codes import full_float32
from proxsae.pytorch.lasso_gram import gap_of
from proxsae.pytorch.lasso_gram import solve as solve_small
from proxsae.pytorch.topk import place_in_row

ROUNDS = 40  # products with D before a row is left to the general iteration; most rows need two or three
FIRST = 24  # atoms that the first round may take up; later ones may triple the support
WIDE = 0.95  # atoms are taken up from this fraction of their lam on, which is what gives the others a `reach`
NEAR = 0.9  # atoms of the working set stay in it from this fraction of their lam on
PIECE = 2**24  # entries of the largest tensor of a piece of rows, (rows, P) or (rows, d): 128 MiB in float64
PRODUCT_ROWS = 128  # at least so many rows a product, which reads D each time
CHUNK = 2**18  # entries of what is passed over several times: a product, a few rows' atoms.  They should fit in cache
FEW_ROWS = 128  # fewer are not worth a thread
FEW = 16  # groups of so few rows spend their time on overheads
GROUP = 2**19  # entries of the Gram matrices that are solved together
GRAM_ATOMS = 4096  # the whole Gram matrix is formed up to this many atoms: 128 MiB


@dataclass(frozen=True)
class Atoms:
    """The dictionary as the rounds need it.  Entry P is a padding atom of length 0 that no code can use."""

    D: Tensor  # (P, d) in float64
    unit: Tensor  # (P + 1, d), in the dtype of the product
    norm: Tensor  # (P + 1,), 1 for atoms of length 0
    lam: Tensor  # (P + 1,), lam_j / ||d_j||, infinite for atoms of length 0
    bar: Tensor  # lam, or its minimum, (1,), where all are the same but for rounding
    error: float  # of d^T r for unit d and r, computed in the dtype of the product
    gram: Tensor | None  # (P + 1, P + 1), of unit atoms
    nonneg: bool


@dataclass
class Rows:
    """Open rows with their working sets.  Padded entries have index P and code 0."""

    row: Tensor  # (n,)
    index: Tensor  # (n, W)
    z: Tensor  # (n, W)
    slope: Tensor  # (n, W), d_j^T (c - D z)
    gap: Tensor  # (n,), of the codes to return, if no atom outside the working set violates
    drift: Tensor  # (n,), a bound on how far rounding the codes moves their residual
    enough: Tensor  # (n,), whether the row needs no more rounds if no atom outside the working set violates
    proved: Tensor  # (n,), whether it is <= tol * objective

    def __getitem__(self, keep: Tensor) -> Rows:
        at = keep.nonzero()[:, 0] if keep.dtype == torch.bool else keep  # once for all fields
        return Rows(*(getattr(self, f.name)[at] for f in fields(self)))


def solve(
    c: Tensor, D: Tensor, R: L1, tol: float, max_steps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Codes (B, P) in `dtype`, and per row gap, products with D^T taken, `converged`, `at_rounding`, and what is left.

    c (B, d), centred, and D (P, d) in float64.  Work is left where `ROUNDS` rounds did not reach the certificate.
    """
    atoms = _atoms(D, R, len(c))
    codes = torch.zeros(len(c), len(D), dtype=dtype, device=c.device)
    gap = c.new_zeros(len(c))
    taken = torch.zeros(len(c), dtype=torch.int64, device=c.device)
    converged, ended, left = (torch.zeros_like(taken, dtype=torch.bool) for _ in range(3))
    norm = lengths(D)

    def leave(rows: Rows) -> None:
        a, b = rows.z.nonzero(as_tuple=True)
        index = rows.index[a, b]
        codes[rows.row[a], index] = (rows.z[a, b] / atoms.norm[index]).to(dtype)
        gap[rows.row], converged[rows.row] = rows.gap, rows.proved

    def judge(rows: Tensor) -> None:
        """Work out the certificate of what was not proved on the way."""
        for at in rows.split(max(1, CHUNK // len(D))):
            z = codes[at].double()
            gap[at], converged[at], _ = certify(c[at], D, z, z, R, tol, 1.0, norm)

    inference = torch.is_inference_mode_enabled()

    def work(piece: Tensor) -> None:
        # A thread inherits neither of these.  no_grad comes second, because inference_mode sets it too.
        with torch.inference_mode(inference), torch.no_grad():
            rounds(piece)

    def rounds(piece: Tensor) -> None:
        none, objective = c.new_zeros(len(piece), 0), 0.5 * c[piece].square().sum(dim=1)
        # z = 0 solves a row without violators.  Columns are written in place, so no two may share memory.
        proved = _a_float(objective) | ~(c[piece] != 0).any(dim=1)
        gap = torch.where(proved, 0, not_faint(objective, objective))
        rows = Rows(piece, none.long(), none, none.clone(), gap, torch.zeros_like(gap), torch.ones_like(proved), proved)
        for _ in range(min(ROUNDS, max_steps)):
            taken[rows.row] += 1
            rows, safe, sure = _round(rows, c, atoms, tol, dtype)
            leave(rows[safe])
            ended[rows.row[safe]] = True
            judge(rows.row[safe & ~sure])
            rows = rows[~safe]
            if not len(rows.row):
                break
        left[rows.row] = taken[rows.row] < max_steps
        leave(rows)
        judge(rows.row)

    _in_threads(work, torch.arange(len(c), device=c.device), PIECE // max(D.shape))
    return codes, gap, taken, converged, ended & ~converged, left & ~converged


def _a_float(objective: Tensor) -> Tensor:
    """Whether an objective has neither overflowed nor lost digits to underflow."""
    return (objective > FAINT) & (objective < torch.inf)


def _in_threads(work: Callable[[Tensor], None], rows: Tensor, most: int) -> None:
    """Give pieces of at most `most` rows to `work`.  On the CPU one thread takes a piece: its tensors are small."""
    threads = torch.get_num_threads() if rows.device.type == "cpu" else 1
    size = max(1, min(most, max(FEW_ROWS, -(-len(rows) // threads))))
    pieces = rows.split(size)
    if threads == 1 or len(pieces) == 1:
        for piece in pieces:
            work(piece)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, pieces))
    finally:
        torch.set_num_threads(threads)


def _atoms(D: Tensor, R: L1, rows: int) -> Atoms:
    P, d = D.shape
    # P^2 numbers of one product cost less than FIRST^2 a row, twice, that are gathered at a quarter of its speed
    whole = min(GRAM_ATOMS, 2 * FIRST * math.sqrt(2 * rows)) >= P
    exact = whole or not full_float32()
    kind = torch.float64 if exact else torch.float32
    norm, unit = D.new_ones(P + 1), torch.zeros(P + 1, d, dtype=kind, device=D.device)
    lam = D.new_full((P + 1,), torch.inf)
    given = R.lam.detach().to(D) if isinstance(R.lam, Tensor) else torch.tensor(R.lam, dtype=D.dtype, device=D.device)
    given = given.expand(P)
    for start in range(0, P, max(1, CHUNK // d)):
        part = slice(start, min(P, start + max(1, CHUNK // d)))
        largest = D[part].abs().amax(dim=1)
        length = (D[part] / torch.where(largest > 0, largest, 1)[:, None]).square().sum(dim=1).sqrt() * largest
        norm[part] = torch.where(length > 0, length, 1)
        unit[part] = D[part] / norm[part, None]
        lam[part] = torch.where(length > 0, given[part] / norm[part], torch.inf)
    gram = unit @ unit.T if whole else None
    least, used = lam.amin(), lam[lam < torch.inf]
    bar = least[None] if len(used) and bool(used.amax() <= (1 + 1e-6) * least) else lam
    # d products and sums, and the rounding of unit atom, unit residual, bar and difference, each below eps (of numbers
    # up to 1: a bar above it is never reached)
    return Atoms(D, unit, norm, lam, bar, (d + 8) * torch.finfo(kind).eps, gram, R.nonneg)


def _round(rows: Rows, c: Tensor, atoms: Atoms, tol: float, dtype: torch.dtype) -> tuple[Rows, Tensor, Tensor]:
    """One round.  Returns the rows after it, a mask `safe` of those that may leave, and a mask `sure`.

    The gap of a row that leaves is proved where `sure`.  Elsewhere rounding the codes may make an atom outside the
    working set violate, so that the gap must be worked out anew.
    """
    a, b = rows.z.nonzero(as_tuple=True)
    index, count = rows.index[a, b], torch.bincount(a, minlength=len(rows.row))
    weights = rows.z[a, b] / atoms.norm[index]
    residual = c[rows.row] - embedding_bag(
        index, atoms.D, count.cumsum(0) - count, mode="sum", per_sample_weights=weights
    )
    length = torch.linalg.vector_norm(c[rows.row], dim=1)
    most = (2 * (rows.z != 0).sum(dim=1)).clamp(min=FIRST)
    row, index, slope, clear, reach = _screen(rows, residual, atoms, most)
    safe, sure = clear & rows.enough, ~clear | (rows.drift <= reach)
    work = (~safe).nonzero()[:, 0]
    if not len(work):
        return rows, safe, sure
    size = _take_up(rows, row, index, slope, atoms)
    order = work[size[work].argsort()]
    sizes, start = size[order].tolist(), 0
    while start < len(order):  # groups of rows whose working sets are of similar size
        stop, most = start + 1, 1.5 * sizes[start] + 8
        while stop < len(order) and sizes[stop] <= most:
            if stop - start >= FEW and (stop - start) * sizes[stop] ** 2 > GROUP:
                break
            stop += 1
        at, W = order[start:stop], max(1, sizes[stop - 1])
        moved = _solve_group(rows, at, W, residual[at], length[at], atoms, tol, dtype)
        safe[at] = rows.enough[at] & (moved <= reach[at])
        sure[at] = True
        start = stop
    return rows, safe, sure


def _screen(rows: Rows, residual: Tensor, atoms: Atoms, most: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One product D^T r.  Returns row, index and slope of the atoms to add, at most `most` a row; `clear`, a mask of
    rows without violators outside their working set; and `reach`, how far a residual may move before others violate.

    Where the product is exact it also updates the slopes on the working sets in `rows`.
    """
    n, P = len(rows.row), len(atoms.D)
    size = torch.linalg.vector_norm(residual, dim=1)
    clear, reach = torch.zeros_like(rows.enough), torch.full_like(size, -1.0)
    found = []
    for part in torch.arange(n, device=size.device).split(max(PRODUCT_ROWS, CHUNK // (P + 1))):
        length = size[part, None].clamp(min=torch.finfo(torch.float64).tiny)
        s = (residual[part] / length).to(atoms.unit.dtype) @ atoms.unit.T
        bar = (atoms.bar / length).to(s.dtype)
        over = s - bar if atoms.nonneg else s.abs().sub_(bar)
        if rows.index.shape[1]:
            held = rows.index[part]
            over.scatter_(1, held, -torch.inf)
            rows.slope[part] = s.gather(1, held).double() * length
        over[:, P] = -torch.inf
        top = over.amax(dim=1)
        none = (top <= -atoms.error) | (size[part] == 0)
        clear[part] = none
        reach[part] = torch.where(none, (-top - atoms.error).clamp(min=0).double() * length[:, 0], -1.0)
        if bool(none.all()):
            continue
        a, b = ((over > -atoms.error - (1 - WIDE) * bar) & ~none[:, None]).nonzero(as_tuple=True)
        count = torch.bincount(a, minlength=len(part))
        allowed = most[part]
        reach[part] = torch.where(none, reach[part], torch.where(count <= allowed, (1 - WIDE) * atoms.lam.amin(), -1.0))
        if bool((count > allowed).any()):  # the worst violators first
            excess, where = over.new_full((len(part), int(count.max())), -torch.inf), place_in_row(a, count)
            excess[a, where] = over[a, b]
            best = excess.topk(min(excess.shape[1], int(allowed.max())), dim=1).indices
            ranks = torch.arange(best.shape[1], device=a.device).expand_as(best)
            rank = torch.full_like(excess, excess.shape[1], dtype=torch.int64).scatter_(1, best, ranks)
            keep = rank[a, where] < allowed[a]
            a, b = a[keep], b[keep]
        found.append((part[a], b, s[a, b].double() * length[a, 0]))
    reach = torch.minimum(reach, (1 - NEAR) * atoms.lam.amin() - atoms.error * size)  # held atoms that will be dropped
    if not found:
        nothing = rows.row.new_zeros(0)
        return nothing, nothing, size.new_zeros(0), clear, reach
    row, index, slope = (torch.cat(column) for column in zip(*found, strict=True))
    return row, index, slope, clear, reach


def _take_up(rows: Rows, row: Tensor, index: Tensor, slope: Tensor, atoms: Atoms) -> Tensor:
    """Drop the atoms that are far from violating from the working sets and add those found; returns the sizes."""
    steep = rows.slope.clamp(min=0) if atoms.nonneg else rows.slope.abs()
    a, b = ((rows.z != 0) | (steep > NEAR * atoms.lam[rows.index])).nonzero(as_tuple=True)
    kept, added = torch.bincount(a, minlength=len(rows.row)), torch.bincount(row, minlength=len(rows.row))
    shape = (len(rows.row), max(1, int((kept + added).max())))
    old, new = (a, place_in_row(a, kept)), (row, kept[row] + place_in_row(row, added))
    columns = []
    for was, now, fill in ((rows.index, index, len(atoms.D)), (rows.z, 0.0, 0.0), (rows.slope, slope, 0.0)):
        column = was.new_full(shape, fill)
        column[old] = was[a, b]
        column[new] = now if isinstance(now, Tensor) else column.new_tensor(now)
        columns.append(column)
    rows.index, rows.z, rows.slope = columns
    return kept + added


def _solve_group(
    rows: Rows, at: Tensor, W: int, residual: Tensor, length: Tensor, atoms: Atoms, tol: float, dtype: torch.dtype
) -> Tensor:
    """Solve rows `at` on their working sets, of at most W atoms, and judge them; returns how far residuals move.

    `length` is ||c||, in whose unit their residuals are rounded.
    """
    index, before, slope = rows.index[at, :W], rows.z[at, :W], rows.slope[at, :W]
    if atoms.gram is not None:
        flat = index[:, :, None] * len(atoms.gram) + index[:, None, :]
        gram = atoms.gram.view(-1).index_select(0, flat.view(-1)).view(flat.shape)
    else:
        gram, slope = _gather(index, residual, atoms)
    lam, norm = atoms.lam[index], atoms.norm[index]
    square = residual.square().sum(dim=1)
    z, g = solve_small(gram, before, slope, lam, square, tol, atoms.nonneg)
    returned = (z / norm).to(dtype).double() * norm
    verdicts = []
    for code in (z, returned):
        move = code - before
        g = slope - (move[:, None] @ gram)[:, 0]
        after = square - (move * (slope + g)).sum(dim=1)
        gap, objective = gap_of(code, g, lam, after, atoms.nonneg)
        # lem-sure-gap, for atoms of length 1, with room for the products by which slopes were brought up to date
        size = length + before.abs().sum(dim=1) + move.abs().sum(dim=1)
        slack = (2 * atoms.D.shape[1] + 3 * W + 8) * UNIT * size
        sure = gap_of(code, g, lam, after, atoms.nonneg, slack[:, None])[0]
        sure = not_faint(sure + slack * (size + code.abs().sum(dim=1)) + (W + 8) * UNIT * objective, objective)
        proved = (sure <= tol * objective) & _a_float(objective)
        square_move = (move * (slope - g)).sum(dim=1).clamp(min=0) + slack * move.abs().sum(dim=1)
        verdicts.append((gap, sure, objective, proved, square_move.sqrt()))
    (gap, _, objective, _, moved), (_, sure, _, proved, returned_moved) = verdicts
    rows.z[at, :W], rows.gap[at], rows.drift[at] = z, sure, (returned - z).abs().sum(dim=1)
    # More rounds cannot undo the rounding of the codes, so a tenth of tol before rounding is enough too.
    rows.proved[at], rows.enough[at] = proved, proved | (gap <= tol / 10 * objective)
    return torch.maximum(moved, returned_moved)


def _gather(index: Tensor, residual: Tensor, atoms: Atoms) -> tuple[Tensor, Tensor]:
    """Gram matrices (n, W, W) and slopes (n, W) of the unit atoms at `index`."""
    (n, W), (P, d) = index.shape, atoms.D.shape
    gram, slope = residual.new_empty(n, W, W), residual.new_empty(n, W)
    for part in torch.arange(n, device=index.device).split(max(1, CHUNK // (W * d))):
        A = atoms.D.index_select(0, index[part].clamp(max=P - 1).view(-1)).view(-1, W, d)
        A = A * torch.where(index[part] < P, 1 / atoms.norm[index[part]], 0)[..., None]
        gram[part] = A @ A.mT
        slope[part] = (A @ residual[part, :, None])[..., 0]
    return gram, slope

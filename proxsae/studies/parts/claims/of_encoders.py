"""The statistics of claims about encoders on one frozen dictionary: what is distilled, and what learning buys."""

from __future__ import annotations

from proxsae.studies.parts.claims.statistics import Found, Rows
from proxsae.studies.parts.encoders.findings import Place, best, errors, place_name, shares
from proxsae.studies.parts.encoders.names import COMPUTED, DEEP, DISTILLED, GREEDY, LEARNED
from proxsae.studies.statistics import ratio_over_seeds
from proxsae.studies.words import percent

PENALTY = "abstopk"
FEW = 4  # products: those of the encoder and of one layer


def distilled(rows: Rows) -> Found | None:
    """The share of the gain of many exact steps that one distilled step has."""
    share = shares(rows, PENALTY, "distilled", 1)
    return Found(f"share of the gain of {DEEP} exact steps: {percent(share)}", share) if share.n else None


def learned_over_computed(rows: Rows) -> Found | None:
    """The error of the best trained encoder over that of the best computed one, both of a few products."""
    learned, computed = (best(rows, PENALTY, FEW, families) for families in ((LEARNED, DISTILLED), (COMPUTED, GREEDY)))
    if learned is None or computed is None:
        return None
    places: list[Place] = [learned.places[0], computed.places[0]]
    found = errors(rows, PENALTY)
    ratio = ratio_over_seeds(*(found[place] for place in places))
    return Found(f"nmse of {place_name(places[0])} over that of {place_name(places[1])}: {ratio}", ratio)

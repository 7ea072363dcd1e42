"""The table of claims: a verdict follows from the rows, changes with them, and is withheld where they do not tell."""

import math

import pytest

from proxsae.studies.parts.claims import section as claims
from proxsae.studies.parts.claims.statistics import CANNOT, NO, OPEN, YES, verdict
from proxsae.studies.sections import PARTS
from proxsae.studies.statistics import Interval

PENALTIES = ("relu", "soft", "jumprelu", "jumprelu2", "topk", "abstopk")


def depth_rows(error, seeds=3):
    """Rows of the depth part; `error(penalty, train_depth, steps)` is the nmse, a little different in every seed."""
    return [
        {"part": "depth", "penalty": penalty, "train_depth": depth, "seed": seed, "rule": rule, "steps": steps,
         "nmse": error(penalty, depth, steps) * (1 + 0.01 * seed), "l0": 4.0}
        for penalty in PENALTIES for depth in (1, 4) for seed in range(seeds) for rule in ("lipschitz", "exact")
        for steps in (1, 4, 16)
    ]  # fmt: skip


def found(rows):
    return {claim.text: claim for claim in claims.claims(rows)}


def test_a_verdict_needs_an_interval_on_one_side():
    assert verdict(Interval(0.9, 0.8, 0.95, 3), claimed_below=1) == YES
    assert verdict(Interval(1.1, 1.05, 1.2, 3), claimed_below=1) == NO
    assert verdict(Interval(0.9, 0.7, 1.01, 3), claimed_below=1) == OPEN
    assert verdict(Interval(0.9, 0.8, 0.95, 3), claimed_above=0.5) == YES
    assert verdict(Interval(0.4, 0.3, 0.45, 3), claimed_above=0.5) == NO
    assert verdict(Interval(0.4, 0.3, 0.55, 3), claimed_above=0.5) == OPEN
    assert verdict(Interval(0.4, math.nan, math.nan, 1), claimed_above=0.5) == OPEN


def test_verdicts_on_errors_turn_with_the_rows():
    better = found(depth_rows(lambda penalty, depth, steps: 0.2 / steps**0.1 * (0.9 if penalty == "abstopk" else 1)))
    worse = found(depth_rows(lambda penalty, depth, steps: 0.2 * steps**0.1 * (1.1 if penalty == "abstopk" else 1)))
    same = found(depth_rows(lambda penalty, depth, steps: 0.2))
    one = found(depth_rows(lambda penalty, depth, steps: 0.1 if penalty == "abstopk" else 0.2, seeds=1))
    against = "AbsTopK reconstructs better than TopK, at equal width and density"
    more = "More steps lower the error of AbsTopK SAEs trained with one, at equal density"
    for text in (against, more):
        assert [rows[text].verdict for rows in (better, worse)] == [YES, NO]
        assert one[text].verdict == OPEN
    assert "0.9" in better[against].measured
    assert same[against].verdict == NO, "equal is not better"
    deep = "AbsTopK trained and used with 4 steps reconstructs better than trained and used with one"
    assert same[deep].verdict == NO
    assert found(depth_rows(lambda penalty, depth, steps: 0.2 / depth))[deep].verdict == YES


def test_errors_at_unequal_density_get_no_verdict():
    rows = depth_rows(lambda penalty, depth, steps: 0.1 if penalty == "abstopk" else 0.2)
    for row in rows:
        row["l0"] = 4.3 if row["penalty"] == "abstopk" else 4.0
    claim = found(rows)["AbsTopK reconstructs better than TopK, at equal width and density"]
    assert claim.verdict == OPEN
    assert claim.measured.endswith("at l0 4.3 against 4.0")


def test_without_training_of_one_step_nothing_is_said_of_it():
    rows = [row for row in depth_rows(lambda penalty, depth, steps: 0.2 / steps) if row["train_depth"] == 4]
    assert not any("one" in text for text in found(rows) if found(rows)[text].verdict != CANNOT and "Lemma" not in text)


def sign_rows(difference, p, opposite=0.8):
    rows = []
    for seed in range(3):
        for sae, two in (("abstopk", 0.9), ("topk", 0.0), ("topk2", 0.0), ("jumprelu", 0.0)):
            base = {"part": "signs", "seed": seed, "sae": sae}
            rows.append(
                {
                    **base,
                    "kind": "latents",
                    "nmse": 0.2,
                    "l0": 4.0,
                    "often_two_sided": two + 0.01 * seed,
                    "fragmented": 0.0,
                }
            )
            for name, sides in (("gender", 1), ("music", 0)):
                rows.append({
                    **base, "kind": "concept", "concept": name, "two_sided": sides,
                    "auc": 0.7 + (difference if sae == "abstopk" else 0) + 0.001 * seed,
                    "opposite": opposite + 0.01 * seed, "opposite_best": 0.5,
                    "negative_zero": 0.9 + 0.01 * seed, "negative_down": 0.05,
                })  # fmt: skip
        for by, shift in (("latent", 0.2), ("dim", 0.6)):
            for sae in ("abstopk", "topk"):
                for direction in "+-":
                    rows.append({
                        "part": "signs", "seed": seed, "sae": sae, "kind": "steering", "by": by, "direction": direction,
                        "concept": "gender", "two_sided": 1, "damage": 0.1,
                        "shift": float(f"{direction}1") * (shift if sae == "abstopk" else shift / 2) + 1e-3 * seed,
                    })  # fmt: skip
    for peer in ("topk", "topk2", "jumprelu"):
        for name, sides in (("gender", 1), ("music", 0)):
            rows.append({
                "part": "signs", "kind": "comparison", "sae": "abstopk", "peer": peer, "concept": name,
                "two_sided": sides, "difference": difference, "p_holm": p, "seed": None,
            })  # fmt: skip
    return rows


def test_verdicts_on_concepts_ask_for_significance_and_for_the_mean():
    text = "The best AbsTopK latent tells a two-sided concept apart better than the best one of TopK"
    hurt = "Signed codes cost one-sided topics no more than 0.02 of AUC, against TopK"
    assert [found(sign_rows(d, p))[text].verdict for d, p in ((0.1, 0.01), (-0.1, 0.01), (0.1, 0.2))] == [YES, NO, OPEN]
    assert [found(sign_rows(d, 1))[hurt].verdict for d in (0.1, -0.01, -0.1)] == [YES, YES, NO]
    one_up = sign_rows(-0.1, 0.2)
    for row in one_up:
        if row["kind"] == "comparison":
            row |= {"difference": 0.3, "p_holm": 0.001}  # one concept of many, against the mean
    assert found(one_up)[text].verdict == OPEN
    opposites = (
        "The AbsTopK latent that best tells the sides of a concept apart has opposite signs on them, in most pairs"
    )
    assert [found(sign_rows(0, 1, share))[opposites].verdict for share in (0.8, 0.1, 0.49)] == [YES, NO, OPEN]
    same = found(sign_rows(0.1, 0.01))
    assert same["Most AbsTopK latents that fire often do so with both signs, whatever these mean"].verdict == YES
    steers = "Clamping one AbsTopK latent steers as selectively, to 5 %, as the supervised difference in means"
    assert same[steers].verdict == NO
    assert "0.33" in same[steers].measured


def test_steering_is_judged_by_the_side_that_is_moved_to_less():
    text = "One AbsTopK latent steers further than a TopK latent to the side that it steers to less"
    assert found(sign_rows(0, 1))[text].verdict == YES
    rows = sign_rows(0, 1)
    for row in rows:  # a latent of TopK that is switched on towards -, and does nothing towards +
        if row["kind"] == "steering" and row["sae"] == "topk" and row["by"] == "latent":
            row["shift"] = 0.0 if row["direction"] == "+" else -5.0
    assert found(rows)[text].verdict == YES
    for row in rows:
        if row["kind"] == "steering" and row["sae"] == "abstopk" and row["direction"] == "-":
            row["shift"] = 0.4  # to the wrong side
    assert found(rows)[text].verdict == NO


def stability_rows(change, seeds=5):
    return [
        {"part": "stability", "penalty": "abstopk", "train_depth": depth, "steps": steps, "seed": a, "other": b,
         "iou": 0.5 + (change + 0.01 * a) * (steps > 1) + 0.02 * b}
        for depth in (1, 4) for steps in (1, 16) for a in range(seeds) for b in range(a + 1, seeds)
    ]  # fmt: skip


def test_verdicts_on_stability_ask_all_pairs_of_enough_seeds():
    text = (
        "AbsTopK codes are less alike across seeds when used with 16 steps, trained with one, than trained and used "
        "with one"
    )
    assert [found(stability_rows(change))[text].verdict for change in (-0.1, 0.1, -0.005)] == [YES, NO, OPEN]
    assert found(stability_rows(-0.1, seeds=3))[text].verdict == OPEN
    shallow = [row for row in stability_rows(-0.1) if row["train_depth"] == 1]
    texts = [claim.text for claim in claims.claims(shallow)]
    assert len(texts) == len(set(texts))
    assert not any("trained with 1" in each for each in texts)


def apart_rows(coded, learned):
    """nmse of the encoder 1, of the best code `coded`, and of that with the other dictionary times `learned`."""
    rows = []
    for penalty in ("relu", "topk", "abstopk"):
        for seed in range(3):
            for depth, factor in ((1, 1.0), (4, learned)):
                for method, steps, error in (("encoder", 1, 1.0), ("best", None, coded * factor)):
                    rows.append({
                        "l0": 4.0,
                        "part": "apart", "kind": "frozen", "penalty": penalty, "train_depth": depth, "seed": seed,
                        "method": method, "steps": steps, "nmse": error * (1 + 0.01 * seed),
                        "share": (0.1 if method == "encoder" else 0.0) + 0.001 * seed,
                    })  # fmt: skip
    return rows


def test_verdicts_on_the_bottleneck_compare_the_two_gains():
    text = "A dictionary learned with 4 steps lowers the error of AbsTopK more than the best code does"
    assert found(apart_rows(0.9, 0.5))[text].verdict == YES
    assert found(apart_rows(0.5, 0.9))[text].verdict == NO
    gap = "The learned encoder of {} SAEs leaves a gap to the best code, above 1 % of what one can gain"
    assert found(apart_rows(0.5, 0.9))[gap.format("ReLU")].verdict == YES
    none = apart_rows(0.5, 0.9)
    for row in none:
        row["share"] = 0.001 + 0.0001 * row["seed"]
    assert found(none)[gap.format("ReLU")].verdict == NO
    assert found(none)[gap.format("AbsTopK")].verdict == OPEN, "a lower bound refutes nothing"
    sparser = apart_rows(0.9, 0.5)
    for row in sparser:
        row["l0"] = 3.0 if row["train_depth"] == 4 else 4.0
    assert found(sparser)[text].verdict == OPEN
    assert found(sparser)[text].measured.endswith("at l0 4.0 against 4.0 against 3.0")


def recovery_rows(one, many, true):
    separation = [
        {"part": "recovery", "kind": "separation", "k": 4, "range": spread, "method": "exact", "steps": steps,
         "measured": 1.0 if steps > 1 or spread < 2 else 0.1, "theory": 1.0 if spread < 2 else None}
        for spread in (1.0, 100.0) for steps in (1, 16)
    ]  # fmt: skip
    same = {"part": "recovery", "kind": "learned", "data": "flat", "signs": "signed", "range": 10.0, "sae": "abstopk"}
    return separation + [
        {**same, "method": "exact", "dictionary": name, "train_depth": depth, "steps": steps, "seed": seed,
         "f1": f1 + 0.001 * seed * steps}
        for seed in range(3)
        for name, depth, steps, f1 in (("learned", 1, 1, one), ("learned", 1, 16, many), ("true", None, 16, true))
    ]  # fmt: skip


def test_verdicts_on_recovery():
    text = "The dictionary, not the inference, holds back the supports that are found (planted, flat, signed)"
    assert found(recovery_rows(0.5, 0.6, 1.0))[text].verdict == YES
    assert found(recovery_rows(0.2, 0.9, 1.0))[text].verdict == NO
    pursued = recovery_rows(0.5, 0.6, 1.0)
    pursued += [
        {**row, "method": "omp", "steps": None, "f1": 0.95}
        for row in pursued
        if row["kind"] == "learned" and (row["dictionary"], row["steps"]) == ("learned", 16)
    ]
    assert found(pursued)[text].verdict == NO, "the best inference counts, not that of 16 steps"
    kept = "One step finds every support where it is promised; past that it fails, and 16 steps do better"
    rows = recovery_rows(0.5, 0.6, 1.0)
    assert found(rows)[kept].verdict == YES
    rows[0]["measured"] = 0.99
    assert found(rows)[kept].verdict == NO


@pytest.mark.parametrize("holds", [True, False])
def test_a_broken_rate_is_seen(holds):
    rows = [{"part": "bounds", "holds": True}, {"part": "bounds", "holds": holds}]
    claim = found(rows)["No measurement breaks a proved rate"]
    assert claim.verdict == (YES if holds else NO)
    assert claim.measured == f"{1 + holds} of 2 hold"


def test_the_section_counts_its_verdicts_and_repeats_its_rows():
    rows = depth_rows(lambda penalty, depth, steps: 0.2 / steps) + stability_rows(0.1) + sign_rows(0.1, 0.01)
    section = claims.section(rows, "proxsae depth --seeds 3")
    (table,) = section.shown
    given = [line[1] for line in table.lines]
    assert f"Of {len(table.lines)} claims {given.count(YES)} hold, {given.count(NO)} do not" in section.findings[0]
    assert "proxsae depth --seeds 3 --parts PART --out depth-PART" in section.notes[0]
    assert given == sorted(given, key=(YES, NO, OPEN, CANNOT).index), "what is decided comes first"
    for text, judged, _, _, part in table.lines:
        assert part in PARTS or (part == "" and (judged == CANNOT or "Lemma" in text))
    assert [c.text for c in claims.claims([]) if c.verdict != CANNOT] == [table.lines[0][0]]


def test_one_claim_is_counted_in_the_singular():
    rows = [row for row in depth_rows(lambda penalty, depth, steps: 0.2 / steps) if row["penalty"] == "relu"]
    alone = [row for row in rows if row["train_depth"] == 1]
    for change, says in ((1, "1 holds, 0 do not, and 0 are"), (-1, "0 hold, 1 does not, and 0 are")):
        made = [row | {"nmse": row["nmse"] ** change} for row in alone]
        assert f"Of 1 claim {says} undecided here." in claims.section(made, "", packaged=False).findings
    one = claims.section([row for row in alone if row["seed"] == 0], "", packaged=False)
    assert "Of 1 claim 0 hold, 0 do not, and 1 is undecided here." in one.findings
    assert one.notes == [], "no command repeats a row"
    assert "concept" not in one.shown[0].caption
    assert "Holm's test over words." in claims.section(rows, "").shown[0].caption


def test_a_report_of_the_users_own_rows_names_no_paper_and_no_reviews():
    rows = depth_rows(lambda penalty, depth, steps: 0.2 / steps) + stability_rows(0.1) + sign_rows(0.1, 0.01)
    section = claims.section(rows, "proxsae depth", packaged=False)
    (table,) = section.shown
    assert {len(line) for line in table.lines} == {len(table.headings)}
    cells = [cell for line in [table.headings, *table.lines] for cell in line]
    told = " ".join([*section.findings, *section.notes, table.caption, *cells])
    for word in ("paper", "review", "et al.", CANNOT):
        assert word not in told, word
    ours, theirs = ({(c.text, c.verdict, c.measured) for c in claims.claims(rows, packaged)} for packaged in (0, 1))
    assert ours < theirs, "the claims that the rows can test are the same"


def test_of_rows_that_are_missing_nothing_is_claimed():
    rows = depth_rows(lambda penalty, depth, steps: 0.2 / steps) + sign_rows(0.1, 0.01)
    some = [row for row in rows if row.get("penalty") != "topk" and row.get("sae") not in ("topk", "topk2")]
    told = [claim for claim in claims.claims(some) if claim.verdict != CANNOT]
    assert not any("nan" in claim.measured for claim in told)
    assert not any("better than TopK" in claim.text for claim in told)

"""How the report opens: the gain with its number, what is not sure, and what there is while a study still runs."""

from __future__ import annotations

import pytest

from proxsae.report import Picture, Table, write_report
from proxsae.studies.parts.depth.section import curve
from proxsae.studies.sections import sections
from proxsae.studies.statistics import pick
from proxsae.studies.words import ANEW
from tests.test_apart import make_rows as apart_rows
from tests.test_claims import PENALTIES, stability_rows
from tests.test_recovery import made_rows as recovery_rows
from tests.test_recovery import made_separation


def depth_rows(error, seeds=3, depths=(1, 4), penalties=PENALTIES):
    """Rows of the part on depth; `error(penalty, train_depth, steps)` is the nmse, a little different in each seed."""
    return [
        {"part": "depth", "penalty": penalty, "train_depth": depth, "seed": seed, "rule": rule, "steps": steps,
         "nmse": error(penalty, depth, steps) ** (1 + 0.01 * seed), "l0": 4.0, "rows": 64, "cost": 3.0 * steps - 2,
         "lam_factor": 1.0 if "topk" in penalty else 1 + steps / 16, "dead": 0.0, "two_sided": 0.0,
         "train_seconds": 1.0}
        for penalty in penalties for depth in depths for seed in range(seeds) for rule in ("lipschitz", "exact")
        for steps in (1, 2, 4, 8, 16)
    ]  # fmt: skip


def falls(penalty, depth, steps):
    return 0.4 * min(steps, 12) ** -0.1 * depth**-0.05


def test_the_report_opens_with_the_gain_one_picture_and_one_small_table():
    answer, *others = sections(depth_rows(falls) + apart_rows(depths=(1, 4)), "proxsae depth")
    gain, cost, rest = answer.findings
    assert gain == (
        "16 exact steps of the same weights cut the error of an AbsTopK SAE by 22 % [22, 23] at equal density, with no "
        "retraining (6 kinds of SAE: −22 % to −22 %)."
    )
    assert "after 8 steps it falls by 19 % [19, 19], at the cost of 22 encoders; 16 steps cost 46." in cost
    assert "with the best code known for the same dictionary the error falls by 40 %" in rest.lower()
    assert rest.endswith("a better code lowers the error more than the other dictionary.")
    picture, table = answer.shown
    assert isinstance(picture, Picture)
    assert isinstance(table, Table)
    assert len(table.lines) == 6
    assert not answer.folded
    assert all(section.folded for section in others)
    assert [section.anchor for section in others] == ["depth", "apart", "claims", "words"], "claims and words last"


def test_a_change_that_is_not_sure_is_not_called_a_cut():
    def same(penalty, depth, steps):
        return 0.4

    rows = depth_rows(same)
    for row in rows:
        row["nmse"] *= 1 + (0.1 * row["seed"] - 0.1) * (row["steps"] > 1)
    assert "do not clearly change the error of an AbsTopK SAE" in sections(rows, "")[0].findings[0]
    worse = sections(depth_rows(lambda penalty, depth, steps: 0.4 * steps**0.1), "")[0].findings
    assert "raise the error of an AbsTopK SAE by 32 % [" in worse[0]
    assert worse[1] == "16 steps cost as much as 46 encoders."


def test_a_direction_is_stated_only_where_there_is_one():
    def even(penalty, depth, steps):
        return 0.4 * steps**-0.1

    rows = depth_rows(even)
    for row in rows:
        row["nmse"] *= 1 + 0.1 * (row["seed"] - 1) * (row["train_depth"] > 1)
    rest = sections(rows, "")[0].findings[-1]
    assert "the error after 16 steps does not clearly change (0 % [" in rest
    known = apart_rows(depths=(1, 4))
    for row in pick(known, kind="frozen"):
        row["nmse"] *= 1 + 0.5 * (row["seed"] - 1) * (row["train_depth"] > 1)
    rest = sections(rows + known, "")[0].findings[-1]
    assert "the error falls by 40 %" in rest
    assert "best code against best code, it does not clearly change (" in rest
    for row in rows:
        row["nmse"] *= 1 + 0.9 * (row["seed"] - 1) * (row["steps"] == 16)
    gain, cost, *_ = sections(rows, "")[0].findings
    assert "do not clearly change" in gain
    assert cost == "16 steps cost as much as 46 encoders."


def test_errors_at_unequal_density_are_not_compared():
    rows = depth_rows(falls, depths=(1,))
    for row in pick(rows, penalty="abstopk"):
        row["l0"] = 4.0 + row["steps"]
    answer, depth, *_ = sections(rows, "")
    assert answer.findings == [
        "16 exact steps of the same weights cut the error of an AbsTopK SAE by 22 % [22, 23] at densities 5.0 and "
        "20.0, so that the errors cannot be compared.",
        "16 steps cost as much as 46 encoders.",
    ]
    changes = {line[0]: line[3] for line in answer.shown[1].lines}
    assert changes["AbsTopK"].endswith("] (at l0 5.0 and 20.0)")
    assert "l0" not in changes["TopK"]
    (told,) = (finding for finding in depth.findings if finding.startswith("AbsTopK"))
    assert told.endswith(" (at l0 5.0 and 20.0).")
    for row in pick(rows, penalty="abstopk"):
        row["l0"] = 4.0 + (row["steps"] == 8)  # at the number of steps with most of the gain
    gain, cost, *_ = sections(rows, "")[0].findings
    assert "at equal density" in gain
    assert cost == "16 steps cost as much as 46 encoders."
    for row in pick(rows, penalty="topk"):  # of a kind that the sentence is not about
        row["l0"] = 4.0 + row["steps"]
    for row in pick(rows, penalty="abstopk"):
        row["l0"] = 4.0
    assert "at equal density, with no retraining (5 kinds of SAE: " in sections(rows, "")[0].findings[0]


def test_rows_are_held_out_only_where_the_study_trained():
    rows = depth_rows(falls, seeds=1)
    ours = sections(rows, "")
    own = sections([{key: value for key, value in row.items() if key != "train_seconds"} for row in rows], "")
    for found, held_out in ((own, False), (ours, True)):
        captions = [item.caption for section in found[:2] for item in section.shown]
        assert len(captions) == 7
        assert all(("64 held-out rows" in caption) == held_out and "64 " in caption for caption in captions)
    assert not any("not trained on; 0" in line for line in own[-1].findings)


def test_the_article_fits_the_name():
    rows = [row | {"penalty": "MCP"} for row in depth_rows(falls, seeds=1, depths=(1,), penalties=("soft",))]
    assert "the error of an MCP SAE by" in sections(rows, "")[0].findings[0]


def test_one_seed_gives_numbers_and_no_verdicts():
    answer = sections(depth_rows(falls, seeds=1), "")[0]
    assert "cut the error of an AbsTopK SAE by 22 % at equal density" in answer.findings[0]
    assert any(note.startswith("One seed: numbers, no verdicts.") for note in answer.notes)
    assert not any(note.startswith("One seed") for note in sections(depth_rows(falls), "")[0].notes)
    told = " ".join([*answer.findings, *(cell for line in answer.shown[1].lines for cell in line)])
    assert "[" not in told
    assert "nan" not in told


def test_a_study_that_still_runs_says_how_much_is_done():
    rows = depth_rows(falls, seeds=1, depths=(1,), penalties=("relu",))
    answer = sections(rows, "", done=(1, 36))[0]
    assert answer.notes[0].startswith("1 of 36 tasks are done.")
    assert "the error of a ReLU SAE by 22 % at equal density, with no retraining." in answer.findings[0]
    assert not any("tasks" in note for note in sections(rows, "", done=(36, 36))[0].notes)
    deep = sections(depth_rows(falls, depths=(4,)), "")[0]
    assert "an AbsTopK SAE trained with 4 steps by" in deep.findings[0]


@pytest.mark.parametrize(
    "rows",
    [[], depth_rows(falls)[:10], apart_rows(), recovery_rows() + made_separation(),
     [row for row in recovery_rows() if row["range"] > 10],
     stability_rows(0.1)],
    ids=["none", "one task", "apart", "recovery", "range", "stability"],
)  # fmt: skip
def test_every_part_alone_makes_a_report(rows, tmp_path):
    for row in rows:
        row |= {"part": row["part"], "cosine": row.get("cosine", 0.5), "rows": row.get("rows", 64)}
    found = sections(rows, "proxsae depth")
    write_report(found, {}, rows, tmp_path)
    assert bool(found[0].findings) == bool(rows)
    assert "nan" not in " ".join(finding for section in found for finding in section.findings)


def test_the_curve_serves_one_sae_alone_and_says_why_an_error_rises():
    alone = [row | {"penalty": "mine"} for row in depth_rows(falls, seeds=1, depths=(1,), penalties=("topk",))]
    (ax,) = curve(alone).axes
    assert ax.get_title() == "mine"
    assert ax.get_ylim()[0] == 0
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mine  −22 %"]
    assert ANEW not in {text.get_text() for text in ax.texts}
    axes = curve(depth_rows(falls)).axes
    assert [ANEW in {text.get_text() for text in ax.texts} for ax in axes] == [False, True, True]
    assert all("log scale" in ax.get_xlabel() for ax in axes)


def test_one_sae_of_the_user_makes_a_report(tmp_path):
    rows = [
        row | {"penalty": "mine", "seed": 0} for row in depth_rows(falls, seeds=1, depths=(2,), penalties=("topk",))
    ]
    for row in rows:
        del row["train_seconds"]  # the study did not train it, and does not know how it was trained
    found = sections(rows, "proxsae depth", packaged=False)
    assert [section.anchor for section in found] == ["answer", "depth", "words"], "there is no claim about it"
    assert "cut the error of the given mine SAE by 22 %" in found[0].findings[0]
    assert "Error of SAEs as given, used with more exact steps" in found[0].shown[0].caption
    some = [row for row in rows if row["steps"] > 2]
    found = sections(some, "proxsae depth", packaged=False)
    assert found[0].findings == ["mine, error after 16 exact steps over that after 4: as given: ×0.896."]
    write_report(found, {}, some, tmp_path)
    assert sections([row for row in rows if row["steps"] == 4], "")[0].findings == []


def test_a_penalty_without_exact_steps_is_told_of_by_the_rule_that_it_has(tmp_path):
    rows = [row | {"rule": "lipschitz"} for row in depth_rows(falls, seeds=1, depths=(1,), penalties=("soft",))[5:10]]
    found = sections(rows, "proxsae depth", packaged=False)
    assert found[0].findings[0].startswith("16 steps (safe step 1/L) of the same weights cut the error of a soft")
    write_report(found, {}, rows, tmp_path)
    assert len(curve(rows).axes) == 1

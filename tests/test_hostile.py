"""Whatever lies in a file: one sentence that names it, or a right answer; nothing runs, hangs, or takes memory.

`hostile.py` has the good files, their changed copies and the judge, and `long/fuzz.py` the long campaign.
"""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch

import proxsae as px
from proxsae import formats
from proxsae.formats import own
from proxsae.sae import loading
from proxsae.testing import assert_same
from proxsae.training import files as run_files
from proxsae.training import state
from tests import hostile
from tests.hostile import OWN, RUN, Judge, Link, Mutant, Violation, limited, stream, within
from tests.test_sae import assert_same_sae

if not hasattr(os, "mkfifo") or not os.path.exists("/proc/self/statm"):
    pytest.skip("needs pipes and /proc", allow_module_level=True)

FORMATS = [
    "AbsTopK authors", "BatchTopK", "Gemma Scope", "SAELens", "SAELens export", "activations", "dictionary_learning",
    "openai", "proxsae", "sparsify", "training checkpoint",
]  # fmt: skip
COUNT = 96  # mutants of each format
ROOM = 2**29  # bytes that reading may ask for beside those at the start


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return list(hostile.targets(tmp_path_factory.mktemp("good")))


@pytest.fixture(scope="module")
def judge(tmp_path_factory, targets):
    judge = Judge(tmp_path_factory.mktemp("judged"))
    hostile.results_of_all(judge, targets)
    return judge


def named(targets, form):
    return [target for target in targets if target.format == form]


def trial(judge, target, mutant, what="", seconds=20):
    """What came of a mutant; a violation says which."""
    try:
        with limited(ROOM), within(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return judge(target, mutant)
    except (Violation, hostile.Endless) as problem:
        msg = f"{target.format}, {target.name}, {what} {mutant.how}: {problem}"
        raise Violation(msg) from problem


def campaign(judge, targets, form, count, seed=0, seconds=20):
    pool = [content for target in targets for content in target.files.values()]
    chosen = named(targets, form)
    return [
        trial(judge, target, make(), f"mutant {number} of seed {seed},", seconds)
        for target in chosen
        for number, make in stream(target, seed, 0, -(-count // len(chosen)), judge.marker, pool)
    ]


def test_every_format_has_its_targets(targets):
    assert sorted({target.format for target in targets}) == sorted(FORMATS)


@pytest.mark.parametrize("form", FORMATS)
def test_mutants_give_one_sentence_or_a_right_answer(form, judge, targets):
    came = campaign(judge, targets, form, COUNT)
    assert len(came) >= COUNT
    assert came.count("read") > COUNT / 20
    assert came.count("refused") > COUNT / 20


@pytest.mark.parametrize("form", FORMATS)
def test_folders_pipes_links_devices_and_holes_in_place_of_a_file(form, judge, targets):
    target = named(targets, form)[0]
    for name, content in target.files.items():
        if name == run_files.METRICS:
            continue
        for how, (instead, claim) in hostile.specials(name, content).items():
            if target.hashed and claim == "any":
                claim = "kept"
            trial(judge, target, Mutant({**target.files, name: instead}, how, claim), name)


def test_the_limit_of_memory_is_one():
    with limited(2**26), pytest.raises(MemoryError):
        np.ones(2**26)


# Code


def poisons(targets, judge, count):
    """Files with pickles that would run, from every format that has pickles, or arrays that may be of objects."""
    for target in targets:
        for name, content in target.files.items():
            if name.endswith((".pt", ".npz", ".npy")):
                for number in range(count if name.endswith(".pt") else 1):
                    rng = np.random.default_rng([7, number])
                    bad = hostile.poisoned(name, content, rng, judge.marker)
                    yield target, Mutant({**target.files, name: bad}, f"poison {number} in {name}", "any")


def unsafe(load):
    return lambda *arguments, **options: load(*arguments, **{**options, "weights_only": False})


class Anything:
    def __contains__(self, name):
        return True


@pytest.mark.parametrize("defence", ["both", "that of torch", "ours"])
def test_no_pickle_runs_even_where_one_of_two_defences_is_gone(defence, judge, targets, monkeypatch):
    if defence == "that of torch":
        monkeypatch.setattr(formats.files, "ALLOWED", Anything())
        monkeypatch.setattr(formats.files, "FOREIGN", set())
    if defence == "ours":
        monkeypatch.setattr(torch, "load", unsafe(torch.load))
    outcomes = [trial(judge, *poison) for poison in poisons(targets, judge, 8)]
    assert len(outcomes) > 100
    assert outcomes.count("refused") > 100


def test_these_pickles_do_run_where_they_may(judge, targets, monkeypatch):
    monkeypatch.setattr(torch, "load", unsafe(torch.load))
    monkeypatch.setattr(formats.files, "ALLOWED", Anything())
    monkeypatch.setattr(formats.files, "FOREIGN", set())
    ran = 0
    for poison in poisons(targets, judge, 8):
        try:
            trial(judge, *poison)
        except Violation as problem:
            ran += "code of the file was run" in str(problem)
    assert ran > 20


@pytest.mark.parametrize("name", ["DATA.PKL", "data.Pkl"])
def test_a_second_pickle_under_another_case_is_refused(name, judge, targets):
    """Torch looks names up whatever their case, and would read the one that was not looked at."""
    target = next(target for target in targets if target.name == "openai ReLU")
    ((file, content),) = target.files.items()
    program = b"\x80\x02cbuiltins\neval\n(" + hostile.text_opcode(f"open({str(judge.marker)!r}, 'w')") + b"tR."

    def change(members):
        (path,) = (path for path, _ in members if path.endswith("data.pkl"))
        return [*members, (path.replace("data.pkl", name), program)]

    bad = hostile.rezipped(content, change)
    trial(judge, target, Mutant({file: bad}, name, "error"))


# Paths


def test_no_path_comes_from_a_file(judge, targets, tmp_path):
    """Every text in every configuration is the path of a pipe: whoever opened it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    for target in targets:
        for name, content in target.files.items():
            if name.endswith(".json"):
                config = json.loads(content)
                for text in (str(tmp_path / "pipe"), f"file://{tmp_path}/pipe", os.path.relpath(tmp_path / "pipe")):
                    for container, key in list(hostile.places(config)):
                        if isinstance(container[key], str):
                            container[key] = text
                    bad = {**target.files, name: json.dumps(config).encode()}
                    trial(judge, target, Mutant(hostile.with_hash(bad), f"paths in {name}", "any"))


def test_a_folder_of_links_as_model_hubs_cache_it(judge, targets):
    for form in ("proxsae", "SAELens", "training checkpoint", hostile.DATA):
        target = named(targets, form)[0]
        links = {name: Link(content) for name, content in target.files.items()}
        assert trial(judge, target, Mutant(links, "links", "same")) == "read"


# What is hashed


@pytest.mark.parametrize(("form", "name"), [(OWN, "learned steps"), (RUN, "abstopk"), (RUN, "relu, middle")])
def test_no_byte_of_what_is_hashed_can_be_changed_unseen(form, name, judge, targets):
    target = next(target for target in named(targets, form) if target.name == name)
    for file, content in target.files.items():
        for at in range(0, len(content) if file != run_files.METRICS else 0, 1 + len(content) // 150):
            bad = bytearray(content)
            bad[at] ^= 1 << at % 8
            trial(judge, target, Mutant({**target.files, file: bytes(bad)}, f"bit {at % 8} of byte {at}", "kept"), file)


def with_tensors(change):
    """A change of an SAE's folder: of its tensors."""
    return lambda files: {**files, own.WEIGHTS: hostile.save(change(hostile.load(files[own.WEIGHTS])))}


def with_penalty(**fields):
    """A change of an SAE's folder: of its penalty."""

    def change(files):
        config = json.loads(files[own.CONFIG])
        config["penalty"] |= fields
        return {**files, own.CONFIG: json.dumps(config).encode()}

    return change


def with_metadata(**fields):
    """A change of an SAE's folder: of its metadata."""

    def change(files):
        config = json.loads(files[own.CONFIG]) | {"metadata": fields}
        return {**files, own.CONFIG: json.dumps(config).encode()}

    return change


FORGED = {
    "notes that are no list": with_metadata(notes="one"),
    "notes that are no text": with_metadata(notes=["one", 3]),
    "a format that is no text": with_metadata(format=["proxsae"]),
    "NaN": with_tensors(lambda tensors: {**tensors, "b_dec": tensors["b_dec"] * torch.nan}),
    "infinite": with_tensors(lambda tensors: {**tensors, "W_enc": tensors["W_enc"] * torch.inf}),
    "eight bits": with_tensors(lambda tensors: {name: a.to(torch.float8_e4m3fn) for name, a in tensors.items()}),
    "whole numbers": with_tensors(lambda tensors: {name: a.long() for name, a in tensors.items()}),
    "vector": with_tensors(lambda tensors: {**tensors, "W_enc": tensors["W_enc"].reshape(-1)}),
    "text for a truth": with_penalty(nonneg="8"),
    "number for a truth": with_penalty(nonneg=1),
    "truth for a number": with_penalty(k=True),
    "huge": with_penalty(k=10**400),
    "unknown field": with_penalty(**{"\x1b[2J\n": 1}),
}


@pytest.mark.parametrize("case", FORGED)
def test_an_sae_whose_hash_was_made_right_is_still_judged(case, judge, targets):
    target = next(target for target in named(targets, OWN) if target.name == "KSparse")
    trial(judge, target, Mutant(hostile.with_hash(FORGED[case](target.files)), case, "error"))


def test_names_of_files_are_quoted_fit_for_a_terminal(judge, targets):
    target = next(target for target in targets if target.name == "abstopk authors AbsoluteKSAE")
    trial(judge, target, Mutant({**target.files, "a\n\x1b[2J.pt": b""}, "a second file", "error"))


def test_every_field_of_an_sae_is_hashed(tmp_path):
    px.SAE(6, 10, px.L1(np.linspace(0.1, 0.2, 10)), 3, px.FixedStep(0.01)).save(tmp_path / "sae")
    file = tmp_path / "sae" / own.CONFIG
    good = json.loads(file.read_text())
    seen = 0
    for i in range(len(list(hostile.places(good)))):
        for value in ("other", None):
            config = json.loads(json.dumps(good))
            container, key = list(hostile.places(config))[i]
            if container[key] == value:
                continue
            container[key] = value
            file.write_text(json.dumps(config))
            with pytest.raises(px.Error, match=r"hash differs|has format"):
                px.load(tmp_path / "sae")
            seen += 1
    assert seen > 40


def test_an_sae_saved_before_its_description_was_hashed_is_read(tmp_path):
    sae = px.topk_sae(6, 10, 3)
    sae.save(tmp_path / "sae")
    file = tmp_path / "sae" / own.CONFIG
    config = json.loads(file.read_text()) | {"format": "proxsae-1"}
    file.write_text(json.dumps(config))
    with pytest.raises(px.Error, match="their hash differs"):
        px.load(tmp_path / "sae")
    config["sha256"] = own.digest(config, (tmp_path / "sae" / own.WEIGHTS).read_bytes())
    file.write_text(json.dumps(config))
    assert_same_sae(px.load(tmp_path / "sae"), sae)


def test_metadata_whose_names_are_no_text_come_back_as_text(tmp_path):
    sae = px.topk_sae(6, 10, 3)
    sae.metadata = {10: "a", 9: ["b", (1, 2)], "deep": {"er": None}}
    sae.save(tmp_path / "sae")
    assert px.load(tmp_path / "sae").metadata == {"10": "a", "9": ["b", [1, 2]], "deep": {"er": None}}


def test_a_state_that_does_not_fit_leaves_the_sae_as_it_was(targets, tmp_path):
    target = next(target for target in named(targets, RUN) if target.name == "abstopk, middle")
    content = target.files[run_files.CHECKPOINT]
    for name in ("W_enc", "adam.b_dec.exp_avg_sq", "quiet"):
        tensors = hostile.load(content)
        tensors[name] = tensors[name] * torch.nan
        header, _ = hostile.header_of(content)
        bad = hostile.rehash(name, hostile.save(tensors, header["__metadata__"]))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        hostile.place(tmp_path / "run", {run_files.CHECKPOINT: bad})
        torch.manual_seed(0)
        sae = px.abstopk_sae(hostile.D, hostile.P, 3)
        before = {key: a.clone() for key, a in sae.state_dict().items()}
        with pytest.raises(px.Error, match=rf"{run_files.CHECKPOINT} holds no state of this SAE \({name} holds NaN"):
            px.train(sae, hostile.ROWS, 4, 8, every=3, progress=False, checkpoint=tmp_path / "run")
        for key, a in sae.state_dict().items():
            assert_same(a, before[key], key)


def test_a_path_that_is_none_is_refused_in_one_sentence():
    for path in ("x" * 5000, "a\0b", "", "/dev/null/x"):
        with pytest.raises(px.Error):
            px.load(path)


# The judge

PLANTED = {
    "no hash": (own, "digest", lambda config, weights: config.get("sha256"), "proxsae"),
    "no hash of a run": (
        run_files,
        "digest",
        lambda tensors, text="": json.loads(text)["sha256"],
        "training checkpoint",
    ),
    "no check of a state": (state, "_check", lambda *_: None, "training checkpoint"),
    "not finite": (formats.parts, "check_finite", lambda name, a: None, "Gemma Scope"),
    "shapes": (formats.parts, "_checked", lambda name, a, *_: a, "SAELens"),
    "sizes": (formats.files, "dense", lambda path, name, a: a, "openai"),
    "pipes": (formats.files, "check_file", lambda path: None, "sparsify"),
    "raw words": (loading, "sentence", lambda text, most=0: str(text), "proxsae"),
}


SOONEST = {"not finite": 4, "shapes": 2, "sizes": 2, "pipes": 3}  # seeds that come upon them soon, where it is not 1


@pytest.mark.parametrize("planted", PLANTED)
def test_the_judge_sees_planted_errors(planted, judge, targets, monkeypatch):
    room, name, wrong, form = PLANTED[planted]
    monkeypatch.setattr(room, name, wrong)
    fresh = Judge(judge.scratch)
    fresh.truths = judge.truths
    first = SOONEST.get(planted, 1)

    def campaigns():  # the times in zips make every run another, so one seed may see none
        for seed in range(first, first + 16):
            campaign(fresh, targets, form, 4 * COUNT, seed, seconds=2)

    with pytest.raises(Violation):
        campaigns()


def test_mutants_repeat(targets, judge):
    target = named(targets, "SAELens")[0]
    pool = list(target.files.values())
    one, two, other = (
        [(made.how, made.claim) for made in (make() for _, make in stream(target, seed, 0, 30, judge.marker, pool))]
        for seed in (0, 0, 1)
    )
    assert one == two
    assert one != other

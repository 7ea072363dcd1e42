"""The claims that a study tests, as data: what is said, by whom, of which part, by which statistic, on which side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from proxsae.studies.parts.claims import in_model, of_encoders, statistics
from proxsae.studies.parts.claims.statistics import Statistic
from proxsae.studies.parts.model.contexts import HALF, TOLD
from proxsae.studies.parts.signs.measure import OFTEN
from proxsae.studies.words import NAMES

PAPER, ISAE, STOP = "the founding paper", "Nelson et al.", "Barin-Pacela et al."
REVIEWS, OURS = "public reviews of the paper", "this study"
WIDE = "TopK of twice the width"


@dataclass(frozen=True)
class Claim:
    """A claim: a statistic lies below, or above, a number; `refutable` is False where it is only a lower bound.

    {last} and {most} in `text` are the most steps of the rows at inference and in training.
    """

    text: str
    source: str
    part: str
    statistic: Statistic
    below: float | None = None
    above: float | None = None
    refutable: bool = True


def _depth(text: str, source: str, what: str, after: dict[str, Any], before: dict[str, Any]) -> Claim:
    return Claim(text, source, "depth", partial(statistics.errors, what, after, before), below=1)


def _used(penalty: str, train_depth: int | str = 1, steps: int | str = 1) -> dict[str, Any]:
    return {"penalty": penalty, "train_depth": train_depth, "steps": steps, "rule": "exact"}


def _an(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


CLAIMS = (
    *(
        _depth(f"AbsTopK reconstructs better than {NAMES[peer]}, at equal width and density", source,
               f"nmse of AbsTopK over that of {NAMES[peer]}, one step", _used("abstopk"), _used(peer))
        for peer, source in (("topk", f"{PAPER}; not so for {ISAE}"), ("jumprelu", PAPER), ("relu", REVIEWS))
    ),
    _depth("With {last} steps of the same weights, AbsTopK reconstructs better than TopK", OURS,
           "nmse of AbsTopK over that of TopK, {last} exact steps",
           _used("abstopk", steps="last"), _used("topk", steps="last")),
    *(
        _depth(f"More steps lower the error of {NAMES[penalty]} SAEs trained with one, at equal density",
               f"{OURS}, after section 2.2 of {PAPER}", "nmse after {last} exact steps over that after one",
               _used(penalty, steps="last"), _used(penalty))
        for penalty in ("abstopk", "topk", "relu", "jumprelu")
    ),
    _depth("AbsTopK trained and used with {most} steps reconstructs better than trained and used with one", ISAE,
           "ratio of nmse", _used("abstopk", "most", "most"), _used("abstopk")),
    _depth("With {last} steps at inference, AbsTopK is better trained with {most} steps than with one", OURS,
           "ratio of nmse", _used("abstopk", "most", "last"), _used("abstopk", steps="last")),
    *(
        Claim(f"The learned encoder of {NAMES[penalty]} SAEs leaves a gap to the best code, above 1 % of what one can "
              "gain", "O'Neill et al.: above 0", "apart",
              partial(statistics.mean, f"gap as a share of F(0) - F*, {known}", "share", None, kind="frozen",
                      train_depth=1, penalty=penalty, method="encoder", steps=1),
              above=0.01, refutable=known == "certified")
        for penalty, known in (("relu", "certified"), ("abstopk", "at least"))
    ),
    *(
        Claim(f"A dictionary learned with {{most}} steps lowers the error of {NAMES[penalty]} more than the best code "
              "does", f"{OURS}, after {STOP}", "apart", partial(statistics.dictionary_or_code, penalty), below=0)
        for penalty in ("abstopk", "topk")
    ),
    Claim("One step, distilled towards the codes of 16, learns more than half of what they gain (AbsTopK)", OURS,
          "encoders", of_encoders.distilled, above=0.5),
    Claim("At the cost of 4 products or less, an encoder that is trained for the frozen dictionary has a lower error "
          "than every computed one (AbsTopK)", f"{OURS}, after Gregor and LeCun", "encoders",
          of_encoders.learned_over_computed, below=1),
    Claim("One step finds every support where it is promised; past that it fails, and {last} steps do better",
          "thm-one-step-support; Tropp", "recovery", statistics.promises, above=0),
    Claim("The dictionary, not the inference, holds back the supports that are found (planted, flat, signed)", STOP,
          "recovery", statistics.planted, above=0),
    Claim("AbsTopK codes are less alike across seeds when used with {last} steps, trained with one, than trained and "
          "used with one", OURS, "stability", partial(statistics.overlap, False), below=0),
    Claim("AbsTopK codes are less alike across seeds when trained with {most} steps and used with {last}, than trained "
          "and used with one", ISAE, "stability", partial(statistics.overlap, True), below=0),
    Claim("No measurement breaks a proved rate", "the theory pages", "bounds", statistics.rates, above=0),
    Claim("AbsTopK reconstructs as well, to 5 %, as a TopK of twice the width, of which it is a tied one "
          "(prop-splitting-codes)", OURS, "signs",
          partial(statistics.errors, "nmse of AbsTopK over that of TopK (2P)", {"kind": "latents", "sae": "abstopk"},
                 {"kind": "latents", "sae": "topk2"}), below=1.05),
    Claim("Most AbsTopK latents that fire often do so with both signs, whatever these mean", OURS, "signs",
          partial(statistics.mean,
                  f"share of latents with {OFTEN} firings or more whose rarer sign fires at least a tenth as often",
                  "often_two_sided", None, kind="latents", sae="abstopk"), above=0.5),
    Claim("TopK cuts directions in two: more of its latents have an opposite partner (cosine below -0.9)", PAPER,
          "signs", statistics.opposite_partners, above=0),
    *(
        claim
        for peer, name, source in (("topk", "TopK", PAPER), ("topk2", WIDE, OURS), ("jumprelu", "JumpReLU", PAPER))
        for claim in (
            Claim(f"The best AbsTopK latent tells a two-sided concept apart better than the best one of {name}", source,
                  "signs", partial(statistics.auc, peer, 1), above=0),
            Claim(f"Signed codes cost one-sided topics no more than 0.02 of AUC, against {name}", REVIEWS, "signs",
                  partial(statistics.auc, peer, 0), above=-0.02),
        )
    ),
    Claim("The AbsTopK latent that best tells the sides of a concept apart has opposite signs on them, in most pairs",
          f"{OURS}, after {PAPER} and its reviews", "signs",
          partial(statistics.mean, "share of held-out pairs with z > 0 on one side and z < 0 on the other", "opposite",
                  ("of the latent chosen for that", "opposite_best"), kind="concept", sae="abstopk", two_sided=1),
          above=0.5),
    Claim("Off a topic that has no opposite, its AbsTopK latent is 0 rather than negative", REVIEWS, "signs",
          partial(statistics.mean, "share of rows off the topic with z = 0", "negative_zero",
                  ("with z < 0", "negative_down"), kind="concept", sae="abstopk", two_sided=0), above=0.5),
    Claim("Clamping one AbsTopK latent steers as selectively, to 5 %, as the supervised difference in means",
          f"{OURS}; {PAPER} says so of MMLU and HarmBench", "signs", statistics.steering_selectivity, above=0.95),
    Claim("One AbsTopK latent steers further than a TopK latent to the side that it steers to less",
          f"{OURS}, after {PAPER}", "signs", statistics.steering_weaker_side, above=0),
)  # fmt: skip

IN_MODEL = (
    *(
        Claim(f"AbsTopK keeps more of the model's loss than {NAMES[peer]}{how} (Loss Recovered)", source, "model",
              partial(in_model.keeps_more, _used("abstopk", steps=t), _used(peer, steps=t)), above=0)
        for t, how, source in ((1, "", PAPER), ("last", ", with {last} steps of the same weights", OURS))
        for peer in ("topk", "jumprelu")
    ),
    *(
        Claim(f"More steps of the same weights lower the model's loss with {_an(NAMES[penalty])} SAE in place", OURS,
              "model", partial(in_model.gives_back, penalty, 0.0), below=0)
        for penalty in ("abstopk", "topk", "jumprelu", "relu")
    ),
    *(
        Claim(f"{{last}} steps give back more than half of the loss that {_an(NAMES[penalty])} SAE costs the model",
              OURS, "model", partial(in_model.gives_back, penalty, 0.5), below=0)
        for penalty in ("abstopk", "topk")
    ),
    *(
        Claim(f"With {_an(NAMES[penalty])} SAE in place, more steps bring the predictions nearer to the model's (KL)",
              OURS, "model", partial(in_model.predicts, penalty), below=1)
        for penalty in ("abstopk", "topk")
    ),
    Claim("With {last} steps at inference, AbsTopK trained with {most} steps keeps more of the model's loss than "
          "trained with one", OURS, "model",
          partial(in_model.keeps_more, _used("abstopk", "most", "last"), _used("abstopk", steps="last")), above=0),
    *(
        Claim(f"k-sparse probes on AbsTopK latents tell labelled texts apart better than on those of {NAMES[peer]}",
              PAPER, "model", partial(in_model.probes, _used("abstopk"), _used(peer)), above=0)
        for peer in ("topk", "jumprelu")
    ),
    *(
        Claim(f"More steps of the same weights make k-sparse probes on {NAMES[penalty]} latents better", OURS, "model",
              partial(in_model.probes, _used(penalty, steps="last"), _used(penalty)), above=0)
        for penalty in ("abstopk", "topk")
    ),
    *(
        Claim(f"Most AbsTopK latents with contexts of both signs have contexts that {how} tells apart", source, "model",
              partial(statistics.mean, f"share told apart at an AUC of {TOLD:g}, {HALF} contexts of each sign to learn "
                      f"from and {HALF} to judge", value, None, kind="contexts", penalty="abstopk", steps=1), above=0.5)
        for value, how, source in (
            ("by_probe", "a probe on the input of the module", f"{OURS}, after {REVIEWS}"),
            ("by_tokens", "the set of their tokens", f"{OURS}, after {REVIEWS}"),
        )
    ),
    Claim("Set to +v and to -v, most AbsTopK latents move the model towards what follows on their own contexts", OURS,
          "model", partial(statistics.mean, "share of latents, judged by the model's own likelihood", "steered",
                           ("with the contexts of another latent", "steered_other"), kind="steering"), above=0.5),
)  # fmt: skip

# What rows alone cannot test, and why; and what a language model in the loop cannot either, and why ("": it can).
UNTESTABLE = (
    ("AbsTopK keeps more of the model's loss (Loss Recovered)", PAPER, "needs the model's forward pass with x̂ for x",
     ""),
    ("AbsTopK does better at unlearning, absorption, SCR, TPP, RAVEL and sparse probing (SAEBench)", PAPER,
     "needs the model, its tokens and the benchmark's data",
     "needs all sets of the benchmark: labelled texts of one are probed here where there are some (--labels)"),
    ("Clamped AbsTopK latents steer MMLU and HarmBench at least as well as the difference in means", PAPER,
     "needs generation; here rows are steered, not texts",
     "needs the questions and a judge of the answers; here the model's own likelihood judges"),
    ("A language model reads two opposite meanings in a share of the latents", PAPER, *2 * ("needs that judge",)),
    ("Signed latents are as monosemantic, by automatic interpretation", REVIEWS, *2 * ("needs that judge",)),
    ("The same holds in other layers, in attention and MLPs, and in models of 10B parameters", REVIEWS,
     "these rows are of one layer of one model; any others can be given",
     "this is one place in one model; any others that fit this machine can be given"),
)  # fmt: skip
BIBLIOGRAPHY = (
    "The founding paper is Zhu, Khalili and Zhu, AbsTopK (arXiv 2510.00404), with its public reviews; Nelson, "
    "Karaletsos and Locatello, Toward Identifiable SAEs (2026); Barin-Pacela et al., Stop Probing, Start Coding "
    "(2603.28744); O'Neill, Gumran and Klindt (2411.13117); Tropp (2004)."
)

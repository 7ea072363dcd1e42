"""How often the host waits for the device, and why: on a device that is not there, with the kernels interpreted.

A wait ends what a GPU lives on, that the host is ahead of it.
"""

import pytest
import torch

import proxsae as px
from tests.pretend_cuda import pretend_cuda

SAES = {
    "abstopk": lambda: px.abstopk_sae(8, 32, k=3),
    "topk": lambda: px.topk_sae(8, 32, k=3),
    "relu": lambda: px.relu_sae(8, 32, lam=0.3),
    "jumprelu": lambda: px.jumprelu_sae(8, 32, threshold=0.3),
    "batch": lambda: px.SAE(8, 32, px.BatchKSparse(3)),
}


@pytest.fixture(autouse=True)
def _no_other_device(device):
    if device != "cpu":
        pytest.skip("the real device is there")
    torch.manual_seed(1)


REASONS = {
    "check_finite": "rows with a NaN are refused, and the caller hears of it at once",
    "_check_weight": "a trained threshold that became NaN is refused",
    "squared_norm_of": "the dictionary is compared with the one whose norm is kept",
    "_dictionary": "a dictionary of zeros has no step size: refused",
    "squared_norm": "size and eigenvalue of a dictionary that has changed, as numbers that step rules are checked by",
    "iterate": "whether all codes are 0, which saves a product",
    "_walk": "the longest atom, which bounds the first trial of all rows",
    "_safe_step": "whether some row has an empty code; after each trial, which rows to try again",
    "largest": "whether a row ties at its k-th entry: torch.topk has no rule for that",
    "Source.at": "the positions of a batch, which the host draws",
    "_revival": "which latents are dead: as many columns of W_enc are gathered",
    "_step": "loss, error and firings, for the progress bar and the check that they are finite",
}


def waits_by_function(counted):
    """The count without files and operations; each has a reason."""
    found = {}
    for (place, _), times in counted.items():
        name = place.split(" ", 1)[1]
        assert name in REASONS, counted
        found[name] = found.get(name, 0) + times
    return found


@pytest.mark.parametrize(
    ("name", "deeper", "kernels", "waits"),
    [
        ("abstopk", {"steps": 1}, True, {"check_finite": 1}),
        ("topk", {"steps": 1}, True, {"check_finite": 1}),
        ("abstopk", {"steps": 1}, False, {"check_finite": 1, "largest": 1}),
        ("abstopk", {"steps": 4}, True, {"check_finite": 1, "squared_norm_of": 1}),  # further steps have none
        ("topk", {"steps": 4}, True, {"check_finite": 1, "squared_norm_of": 1}),
        ("abstopk", {"steps": 4}, False, {"check_finite": 1, "squared_norm_of": 1, "largest": 4}),
        (  # two trials: 1 + 2 waits for the first, whose rows are tried again, and 1 for the second
            "abstopk",
            {"steps": 2, "step": px.ExactStep()},
            True,
            {"check_finite": 1, "squared_norm_of": 1, "_walk": 1, "_safe_step": 4, "largest": 2},
        ),
        ("relu", {"steps": 1}, True, {"check_finite": 1}),
        ("relu", {"steps": 4}, True, {"check_finite": 1, "squared_norm_of": 1, "iterate": 1}),
        ("jumprelu", {"steps": 1}, True, {"check_finite": 1, "_check_weight": 1}),
        ("jumprelu", {"steps": 4}, True, {"check_finite": 1, "_check_weight": 2, "squared_norm_of": 1, "iterate": 1}),
    ],
)
def test_waits_of_an_encoder(name, deeper, kernels, waits):
    with torch.no_grad(), pretend_cuda(kernels) as counted:
        x, sae = torch.randn(4, 8).to("cuda"), SAES[name]().to("cuda").unrolled(**deeper)
        sae.encode(x)  # ||D||^2 is worked out and kept
        counted.clear()
        sae.encode(x)
        assert waits_by_function(counted) == waits


@pytest.mark.parametrize(("name", "steps"), [("abstopk", 1), ("abstopk", 3), ("jumprelu", 1), ("relu", 3)])
def test_a_backward_pass_waits_for_nothing(name, steps):
    with pretend_cuda(kernels=True) as counted:
        x, sae = torch.randn(4, 8).to("cuda"), SAES[name]().to("cuda").unrolled(steps)
        loss = (sae(x) - x).square().sum()
        counted.clear()
        loss.backward()
        assert not counted


BATCH = {"Source.at": 1, "check_finite": 2, "_revival": 1, "_step": 1}  # checked as it is read, and by the encoder


@pytest.mark.parametrize(
    ("name", "steps", "dead", "waits"),
    [
        ("abstopk", 1, False, BATCH),
        ("abstopk", 1, True, BATCH),  # what revives all latents waits for no more
        ("batch", 1, True, BATCH),
        ("relu", 1, True, BATCH),
        ("jumprelu", 1, True, BATCH | {"_check_weight": 1}),
        ("topk", 2, False, BATCH | {"check_finite": 3, "_dictionary": 1, "squared_norm": 3}),
    ],
)
def test_waits_of_a_training_step(name, steps, dead, waits, monkeypatch):
    monkeypatch.setattr("proxsae.training.loop.DEAD_AFTER", -1 if dead else 1)
    x, runs = torch.randn(12, 8), []
    for length in (2, 3):
        with pretend_cuda(kernels=True) as counted:
            sae = SAES[name]().to("cuda")
            px.train(sae if steps == 1 else sae.unrolled(steps), x.to("cuda"), length, batch_size=1, progress=False)
        runs.append(counted)
    assert waits_by_function(runs[1] - runs[0]) == waits

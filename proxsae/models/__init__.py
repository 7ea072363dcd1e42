"""A model in the loop: collect activations at a module, put an SAE in their place, steer, and measure what it costs.

What SAEBench asks of labelled texts is here too: probes on few latents, perturbation, absorption.

Any `torch.nn.Module` will do; nothing but torch is imported, and scikit-learn where a probe is fitted.  A place is a
module by its dotted name, as `model.named_modules()` has it, and its input or output, (batch, tokens, d).
"""

from proxsae.models.absorbing import absorption
from proxsae.models.collecting import collect, last_tokens
from proxsae.models.interventions import splice, steer
from proxsae.models.losses import ablate, loss_recovered
from proxsae.models.perturbing import scr, tpp
from proxsae.models.probing import dense_probes, probe, split

__all__ = [
    "ablate",
    "absorption",
    "collect",
    "dense_probes",
    "last_tokens",
    "loss_recovered",
    "probe",
    "scr",
    "splice",
    "split",
    "steer",
    "tpp",
]

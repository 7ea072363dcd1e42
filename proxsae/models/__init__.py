"""A model in the loop: collect activations at a module, put an SAE in their place, steer, and measure what it costs.

Any `torch.nn.Module` will do; nothing but torch is imported.  A place is a module by its dotted name, as
`model.named_modules()` has it, and its input or output, (batch, tokens, d).
"""

from proxsae.models.collecting import collect
from proxsae.models.interventions import splice, steer
from proxsae.models.losses import ablate, loss_recovered

__all__ = ["ablate", "collect", "loss_recovered", "splice", "steer"]

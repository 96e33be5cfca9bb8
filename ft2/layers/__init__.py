"""What is in a model: the projections and activations of its decoder blocks, and their roles."""

from ft2.layers.activation import Activation
from ft2.layers.find import UnsupportedModelError, activations, projections
from ft2.layers.model import unwrap
from ft2.layers.projection import Projection

__all__ = [
    "Activation",
    "Projection",
    "UnsupportedModelError",
    "activations",
    "projections",
    "unwrap",
]

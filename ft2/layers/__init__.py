"""What is in a model: the linear projections of its decoder blocks, and which are critical."""

from ft2.layers.find import UnsupportedModelError, projections
from ft2.layers.model import unwrap
from ft2.layers.projection import Projection

__all__ = ["Projection", "UnsupportedModelError", "projections", "unwrap"]

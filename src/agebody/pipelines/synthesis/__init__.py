"""Synthetic training data: random people of every age in images, with everything that is known of them."""

from agebody.pipelines.synthesis.recipe import Recipe
from agebody.pipelines.synthesis.shards import synthesize

__all__ = ["Recipe", "synthesize"]

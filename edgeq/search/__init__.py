"""A mixed-precision search: which layer gets which precision, by what that costs as measured and what it hurts."""

from edgeq.search.explain import explain
from edgeq.search.verb import search

__all__ = ["explain", "search"]

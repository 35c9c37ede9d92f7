"""Results on disk."""

from jaxsym.sweep import store

__all__ = ["store"]

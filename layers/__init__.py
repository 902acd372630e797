"""The model: batches -> image and text embeddings -> similarity. One file per part of the paper's figure."""

from __future__ import annotations

from typing import Any

__all__ = ["GaLR", "build_model"]


def __getattr__(name: str) -> Any:
    """Load the model on first use, so that `layers.drea`, which is NumPy alone, does not wait for PyTorch."""
    if name in __all__:
        from layers import galr

        return getattr(galr, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The multivariate rerank: `method` is its mathematics, `search` chooses its weights, and the package is the command.

python -m postprocessing.rerank --sims postprocessing/file/EXPERIMENT_0.npy
"""

from postprocessing.rerank.method import (
    PUBLISHED,
    VARIANTS,
    Candidates,
    Reranker,
    Setting,
    find_candidates,
    multivariate,
    multivariate_order,
    rerank_recall,
    reverse_order,
)

__all__ = [
    "PUBLISHED",
    "VARIANTS",
    "Candidates",
    "Reranker",
    "Setting",
    "find_candidates",
    "multivariate",
    "multivariate_order",
    "rerank_recall",
    "reverse_order",
]

"""Frechet distance between two sets of vectors."""

import numpy as np

from sora_jax.core.errors import InputError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians fitted to two sets of vectors.

    It is |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), in float64.

    Args:
      a, b: [n, D] and [m, D], at least two vectors each.
    Raises: InputError for fewer.
    Source: Dowson and Landau 1982, eq. 4.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"a distance between {len(a)} and {len(b)} videos: at least 2 of each are needed")
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    A, B = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2), which are not negative.
    values, vectors = np.linalg.eigh(A)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ B @ root), 0)).sum()
    mean = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(mean + np.trace(A) + np.trace(B) - 2 * cross)

"""Chains over the workers of a Dask cluster: `hessian` puts their segments there, `factorize` factorizes them.

Needs dask and distributed (the extra ``distributed``), which are imported when they are used.
"""

from .factorization import DistributedFactorization
from .hessian import DistributedHessian, factorize, hessian

__all__ = ["DistributedFactorization", "DistributedHessian", "factorize", "hessian"]

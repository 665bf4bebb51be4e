"""Products, triangular solves, rank updates and the signed Cholesky on small dense matrices."""

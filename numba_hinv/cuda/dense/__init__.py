"""Products, triangular solves, rank updates and the signed Cholesky by the threads of a block, or of the whole GPU."""

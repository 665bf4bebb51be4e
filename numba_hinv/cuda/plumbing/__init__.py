"""What kernels are compiled for on a GPU, how they are launched, and vectors and arrays of the caller's there."""

"""How kernels are compiled, called, given memory, and what they return."""

"""The compiled sweeps over the layers, on the CPU.

``sweeps`` has what Python calls: linearise, multiply, eliminate, substitute, and the covariance recursion. ``steps``
has what they do at one layer, ``dense`` the products, triangles and pivots on small matrices, and ``plumbing`` how all
of this is compiled and called. Each imports from those after it alone.
"""

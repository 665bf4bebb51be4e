"""The asv benchmarks: problem.py builds what they run on, the other modules hold one group of figures each."""

"""The sweeps: kernels that go through the layers of a chain, and the files to read beside docs/theory.md."""

"""The version of numba_hinv, in one place: pyproject.toml and the package both read it from here."""

__version__ = "0.2.0"

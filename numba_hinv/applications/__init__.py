"""What an exact inverse is for: training, spectra, uncertainty, influence; each a thin layer on H and its inverse."""

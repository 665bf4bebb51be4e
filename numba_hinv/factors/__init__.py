"""How a matrix was factored: one interface (`interface`), and a file for each way. Nothing outside asks which it is."""

"""What the sweeps do at one layer, and the table that says where each layer's blocks lie."""

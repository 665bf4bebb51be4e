"""What is solved with: a chain's table and derivative blocks on a processor, products with H, scaling, the norm."""

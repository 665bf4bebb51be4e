"""Layers, activations and losses: what users build nets of, and how a chain of them becomes derivative blocks."""

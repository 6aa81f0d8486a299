"""How good a model is, and beside what."""

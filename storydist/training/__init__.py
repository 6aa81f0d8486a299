"""How a model is trained and never lost."""

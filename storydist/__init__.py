"""Distributed training on illustrated stories: data, model, verdict, training."""

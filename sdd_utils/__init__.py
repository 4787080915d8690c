"""Self-data distillation: prune a block of layers, let the unpruned model rewrite the data, fine-tune, recover."""

__version__ = "0.1.0"

"""Self-data distillation: prune a block of layers, let the unpruned model rewrite the data, fine-tune, recover."""

from pathlib import Path

__version__ = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent

"""Self-data distillation: prune a block of layers, let the unpruned model rewrite the data, fine-tune, recover."""

from pathlib import Path

__version__ = "0.1.0"
PACKAGE = Path(__file__).resolve().parent
# Where relative paths start and caches lie: the repository, or the working folder of a package that stands alone.
ROOT = PACKAGE.parent if (PACKAGE.parent / "Snakefile").is_file() else Path.cwd()

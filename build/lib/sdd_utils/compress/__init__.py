"""Compress one model with one data set: from a model's name to a folder that serves; see docs/own-model.md."""

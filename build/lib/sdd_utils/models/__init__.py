"""Find, load, save and count models."""

"""One module per step of a study, in the order of the notebooks."""

"""The offline tasks: lm-eval's task files, and the builders of their documents."""

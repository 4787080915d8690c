"""Run a study: plan, prefetch, jobs, publishing."""

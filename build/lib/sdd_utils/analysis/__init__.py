"""What the records say: statistics, comparisons, claims. No model is loaded here."""

"""Data sets as rows of one form, and the arms that choose what of a row is learnt."""

"""What a study says, whether it may, which jobs it has and where their files lie."""

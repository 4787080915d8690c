"""What every room needs: files, records, provenance, precision, numbers as text."""

"""The YAML of a run: its schema, the table of likelihoods, and how files are read. Nothing here needs torch."""

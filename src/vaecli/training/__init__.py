"""One run in memory: the loop of algorithm 1, its steps, and what it records."""

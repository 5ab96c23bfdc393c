"""Published experiments done again: what they are, and our figures beside theirs."""

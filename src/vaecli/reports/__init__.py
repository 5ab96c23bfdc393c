"""What came of many runs: tables, plots, tests of significance, and the documents that hold them."""

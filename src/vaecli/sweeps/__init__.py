"""Many runs: which ones, and how they are spread over processes or a cluster."""

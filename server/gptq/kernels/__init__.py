"""Products with quantised weights; one file for each way, and `select` that chooses."""

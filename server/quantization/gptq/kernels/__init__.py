"""Products with quantized weights; one file for each way, and `select` that chooses."""

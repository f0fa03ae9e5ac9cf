"""Building blocks of the models; each keeps its own weights and knows nothing of batching."""

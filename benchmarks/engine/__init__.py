"""What the engine itself costs, beside the model."""

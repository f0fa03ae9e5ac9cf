"""Model architectures and how their weights come from disk."""

"""How servers and accounts are called, and how their answers are read and judged."""

"""Grammars that answers are held to: what may be asked for, and where an answer stands in it."""

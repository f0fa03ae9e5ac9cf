"""Attention backends; nothing else knows a kernel."""

"""Counters and histories of what passes the gateway."""

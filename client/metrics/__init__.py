"""Counters and histories of the gateway's requests."""

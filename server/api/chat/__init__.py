"""Conversations, whichever API they come by: one form of a request, one way to the service."""

"""Which server gets a request: filter, policy, prefix affinity, and the wait for a server."""

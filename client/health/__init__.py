"""What the gateway knows about each server: state, load, breaker, and the heartbeats that keep it fresh."""

"""The gateway: one door in front of many servers that balances, retries and survives them."""

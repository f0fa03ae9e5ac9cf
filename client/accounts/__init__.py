"""OpenAI accounts, and any endpoint that speaks OpenAI's API."""

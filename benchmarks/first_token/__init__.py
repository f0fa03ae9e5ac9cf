"""Where the time of a first token goes, from the client's request to the first byte of text."""

"""One request in flight: what it asks for, the answer to its client, and its clock."""

"""Everything that crosses the wire: requests, answers, errors, events, status and routes.

The gateway and the servers know each other only through this package; it imports nothing but
pydantic.
"""

__version__ = "0.1.0"
"""Version of the stack, as the services report it in ``/status``."""

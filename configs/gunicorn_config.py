"""How gunicorn runs each of the three services (``start_app.py`` adds address and name)."""

from utils.logs import DATE_FORMAT, FORMAT

# The loop of a service is asynchronous: uvicorn with uvloop and httptools.
worker_class = "utils.http_server.Worker"

# One process per service: an engine's state lives in it, and so does the gateway's knowledge of
# its servers. For more, start more servers.
workers = 1

# Seconds after which an idle connection is closed: longer than clients keep it in their pools, so
# that none is closed at the moment when a client sends its next request on it.
keepalive = 75

# Seconds without a sign of life after which a worker is killed and started again. Its event loop
# never blocks, but importing torch from a cold disk is silent.
timeout = 120

# Seconds that requests in flight have to finish after SIGTERM.
graceful_timeout = 60

# Waiting connections the kernel holds for us in a burst.
backlog = 2048

# Bytes of a request target (more get 414), header fields of a request, and bytes of one of them (more
# get 431). A whole head has at most 64 KiB.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 32768

# Open connections of a service. Where more come, those are closed that have waited longest for a
# request, of the address that has most of these. Never more than half the limit of open files.
worker_connections = 8192

# The log lines of gunicorn look like those of the services.
logconfig_dict = {
    "formatters": {"line": {"format": FORMAT, "datefmt": DATE_FORMAT, "class": "logging.Formatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["stderr"], "propagate": False},
        "gunicorn.access": {"level": "INFO", "handlers": [], "propagate": False},
    },
}

"""The static-batching server."""

import os

# Threads of torch that wait for each other spin for some 50 µs, then sleep. libgomp's own default is some
# twenty milliseconds, in which nothing else has the processors. It is read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

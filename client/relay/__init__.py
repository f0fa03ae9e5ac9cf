"""From a request to a server and back, with as many attempts as are safe."""

"""TLS and HTTP: the only floor that knows sockets."""

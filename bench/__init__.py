"""Side-by-side measurements: the plain SDK, deadstop, a bare `socket.shutdown`. `python -m bench --help`."""

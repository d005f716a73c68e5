"""Side-by-side measurements: the plain SDK, deadstop, and a bare `socket.shutdown`. `python -m bench --help`."""

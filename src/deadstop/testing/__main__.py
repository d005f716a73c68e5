"""`python -m deadstop.testing`: a fake server in the foreground."""

from __future__ import annotations

import argparse
import ssl

from deadstop.testing.process import serve


def main() -> None:
    """Reads the options and serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m deadstop.testing", description="An OpenAI-compatible fake server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--rate", type=float, default=200.0, help="tokens per second; 0 is as fast as possible")
    parser.add_argument("--tokens", type=int, default=50, help="length of an answer")
    parser.add_argument("--burst", type=int, default=1, help="events per write")
    parser.add_argument("--cert", help="PEM certificate: speak HTTPS")
    parser.add_argument("--key", help="PEM key of the certificate")
    parser.add_argument("--until-stdin-ends", action="store_true", help="also stop when standard input ends")
    asked = parser.parse_args()
    context = None
    if asked.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(asked.cert, asked.key)
    serve(
        asked.host,
        asked.port,
        rate=asked.rate,
        tokens=asked.tokens,
        burst=asked.burst,
        ssl_context=context,
        until_stdin_ends=asked.until_stdin_ends,
    )


if __name__ == "__main__":
    main()

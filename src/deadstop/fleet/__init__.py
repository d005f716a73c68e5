"""Beyond this process: the ledger's own threads, and signals between the processes that share it.

``lane.py`` a thread for the ledger, ``post.py`` the socket of a process, ``wire.py`` LISTEN and NOTIFY instead of it,
``member.py`` a process that uses a ledger, ``holder.py`` what it knows of who holds runs, ``left.py`` what its closed
clients left behind; ``bus.py`` a connection to NATS, ``exchange.py`` what a member does with it, ``addresses.py`` how a
bus is named.
What runs are is not known here; ``deadstop.runs.keeping`` tells what is to be kept.
"""

from __future__ import annotations

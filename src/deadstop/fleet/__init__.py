"""Beyond this process: the ledger's own threads, and signals between the processes of a host.

``lane.py`` a thread for the ledger, ``post.py`` the socket of a process, ``member.py`` a process that uses a ledger.
What runs are is not known here; ``deadstop.runs.keeping`` tells what is to be kept.
"""

from __future__ import annotations

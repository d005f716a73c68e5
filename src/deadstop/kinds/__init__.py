"""What can be cancelled on a server: one small file for each kind of remote run, and the register of them.

A kind of your own::

    from deadstop import Kind, register_kind

    register_kind(Kind(
        name="message_batch",  # Anthropic's
        path="/v1/messages/batches/{batch_id}",
        create=("/v1/messages/batches",),
        active=frozenset({"in_progress"}),
        cancelling=frozenset({"canceling"}),
        ...
    ))
"""

"""What can be cancelled on a server: one small file for each kind of remote run, and the register of them."""

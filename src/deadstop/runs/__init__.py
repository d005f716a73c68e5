"""What users hold: runs, their scopes, and the cancels of them."""

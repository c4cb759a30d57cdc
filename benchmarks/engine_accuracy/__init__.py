"""flopwatch's tokens, FLOPs and bytes against the truth of real engines, token by token."""

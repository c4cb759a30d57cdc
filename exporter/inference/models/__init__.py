"""Model arithmetic: from a config.json and tokens to FLOPs and bytes. The only I/O is that file."""

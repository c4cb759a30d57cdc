"""Models as arithmetic: from a config.json and tokens to FLOPs and bytes. No I/O but one file."""

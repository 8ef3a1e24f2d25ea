"""What docs/generate.py puts into the pages, one module per kind of block."""

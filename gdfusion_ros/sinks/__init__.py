"""Where frames and occupancies go: recordings and files."""

"""Command lines: options, their rules, hints and help."""

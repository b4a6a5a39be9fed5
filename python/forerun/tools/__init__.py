"""The command line, and what compares and reports."""

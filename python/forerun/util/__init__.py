"""Checks of arguments and files that every part uses."""

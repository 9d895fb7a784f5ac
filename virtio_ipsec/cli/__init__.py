"""Argument parsing and printing, one file per verb."""

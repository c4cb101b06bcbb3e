"""Datasets of other programs, read and written without importing those programs."""

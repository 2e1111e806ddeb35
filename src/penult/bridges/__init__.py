"""Penult inside other people's tools; one file per tool."""

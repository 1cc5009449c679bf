"""Trained models for other runtimes, and for other people."""

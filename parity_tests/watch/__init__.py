"""Tracing a live model of any framework."""

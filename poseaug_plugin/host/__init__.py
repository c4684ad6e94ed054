"""Somebody else's loop: its format, its sequences, its batches, its optimizer."""

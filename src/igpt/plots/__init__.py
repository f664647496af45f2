"""Figures from arrays: sheets of pictures, curves, and the figures of scores."""

"""Bare Linux hosts to a region: the Pulumi programs, what they render, and the images they install."""

"""Doubles of what cannot be downloaded, and the lab that stands for hosts."""

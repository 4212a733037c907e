"""The works: what is done, and the program of each system that does it."""

"""A whole site in a directory, and simulation of job launches at ten thousand nodes."""

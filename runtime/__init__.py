"""What runs on login and compute nodes; standard library only, because nodes carry no wheels."""

__version__ = "26.11.0"

"""Data directories as released versions left them, and the script that makes them."""

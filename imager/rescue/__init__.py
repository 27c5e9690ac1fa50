"""The rescue stick's program: what is attached, which images are on it, and bringing one back."""

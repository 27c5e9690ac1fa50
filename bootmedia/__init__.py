"""The rescue medium: its recipe, how it is built, and how it gets onto a stick.

The recipe's lists, hooks and configuration are files in `data/`; the modules here put them together.
"""

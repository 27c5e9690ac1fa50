"""The image file: its frames and records, one writer, one reader; docs/format.md is the specification."""

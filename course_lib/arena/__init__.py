"""The arena: every family of the course on the same data, with the same budget and the same yardstick."""

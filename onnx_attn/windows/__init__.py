"""Blocks whose attention looks at windows of a map: the order of rows in which they are computed."""

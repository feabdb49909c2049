"""Annotations as images: pure functions `render_*(...) -> (H, W, 3)` uint8 RGB, without file access.

Coordinates are output pixels, already mapped by the example's `uvd.sequences.Transform`; every rule of drawing is
stated in its module and fixed by a golden image.
"""

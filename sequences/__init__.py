"""The vocabulary of uvd: pictures, examples, visual sequences, layouts, geometry and seeds. Imports nothing of uvd."""

from uvd.sequences.example import IMAGE_SIZE, Example, Picture
from uvd.sequences.geometry import Resize, Transform, fit
from uvd.sequences.reject import Reason, Reject
from uvd.sequences.seeds import Seeds
from uvd.sequences.visual_sequence import MAX_IMAGES, VisualSequence

__all__ = [
    "IMAGE_SIZE",
    "MAX_IMAGES",
    "Example",
    "Picture",
    "Reason",
    "Reject",
    "Resize",
    "Seeds",
    "Transform",
    "VisualSequence",
    "fit",
]

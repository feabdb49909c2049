"""Layouts: rules that arrange examples into visual sequences of at most 16 images. One file and one line here each."""

from uvd.sequences.layouts.annotated_video import Grouped, Interleaved
from uvd.sequences.layouts.assemble import assemble
from uvd.sequences.layouts.base import Arranged, Layout, LayoutError
from uvd.sequences.layouts.category import Category
from uvd.sequences.layouts.frames import Frames
from uvd.sequences.layouts.multiview import Multiview
from uvd.sequences.layouts.pairs import Pairs
from uvd.sequences.layouts.single import Single
from uvd.sequences.layouts.tuples import Tuples
from uvd.sequences.layouts.whole import Whole

LAYOUTS: dict[str, type[Layout]] = {
    layout.name: layout for layout in (Single, Frames, Multiview, Category, Pairs, Tuples, Whole, Interleaved, Grouped)
}

__all__ = ["LAYOUTS", "Arranged", "Layout", "LayoutError", "assemble"]

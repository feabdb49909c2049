"""`voc`: Pascal VOC's folders → boxes from the XML files, segmentation and masks by class from `SegmentationClass`.

Input: `JPEGImages/NAME.jpg`, `Annotations/NAME.xml`, `SegmentationClass/NAME.png`, `ImageSets/*/{train,val,test}.txt`;
`SegmentationObject` is not used. A class's colour is its place in VOC's published order, in both; names outside it, in
data sets of the same form, follow from 21 on in sorted order. So planning reads every XML file, 0.3 ms each. Value 255
of a mask is void, black. VOC's lists are the splits: `Main`, or `Segmentation` where only masks are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvd.renderers.palette import PALETTE_SIZE
from uvd.sequences import Reason, Transform
from uvd.sequences.example import SPLITS
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.base import AnnotatedImage, Annotation, Reader
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.drawn_masks import MasksAfter, draw_foreground
from uvd.sources.annotated.renders import box_annotations, wanted_renders
from uvd.sources.annotated.voc_xml import PERSON, VOC_CLASSES, VocObjects, read_objects
from uvd.sources.base import Item, SourceError, refused
from uvd.sources.decode import decode_image, read_bytes
from uvd.sources.drawing import Labels, check_size, draw_ids, naming, open_labels
from uvd.sources.matching import files_by_stem, listed_lines, need_folders, sizes

PHOTOS, XML, MASKS = "JPEGImages", "Annotations", "SegmentationClass"
FORM = f"{PHOTOS}/NAME.jpg with {XML}/NAME.xml or {MASKS}/NAME.png"
VOID = 255
MAX_XML_BYTES = 16 << 20
MAX_LIST_BYTES = 256 << 20

Places = dict[str, list[int]]
"""Name of a photo → places in the palette of its objects, in the order of its XML file."""


class VocReader(Reader):
    def __init__(self, config: AnnotatedConfig) -> None:
        super().__init__(config)
        pose = config.estimate.pose
        self._shows_people = pose is not None and pose.boxes == "given"
        self._renders = wanted_renders(config)
        self._boxes = any(kind in ("boxes", "filled_boxes") for kind in self._renders)
        self._masks = any(kind in ("segmentation", "foreground") for kind in self._renders)

    def items(self) -> Iterator[Item]:
        root = self.config.input
        self._check_folders()
        photos, doubles = files_by_stem(root / PHOTOS)
        xml = _xml_by_stem(root / XML) if self._boxes or self._shows_people else {}
        masks, mask_doubles = files_by_stem(root / MASKS) if self._masks and (root / MASKS).is_dir() else ({}, [])
        splits = self._splits()
        described, damaged = self._described(sorted(photos.keys() & xml.keys()), xml)
        for stem in sorted(photos):
            origin = f"{PHOTOS}/{photos[stem]}"
            if stem in damaged:
                yield refused(origin, damaged[stem].reason, damaged[stem].detail)
            elif not ((self._boxes and stem in xml) or stem in masks or self.config.adds_pictures):
                yield refused(origin, Reason.NO_ANNOTATION, f"no file of its name in {self._looked_in()}")
            else:
                yield self._item(origin, xml.get(stem), masks.get(stem), described.get(stem), splits.get(stem))
        for name in doubles:
            yield refused(f"{PHOTOS}/{name}", Reason.NO_ANNOTATION, "another photo has this name")
        for name in mask_doubles:
            yield refused(f"{MASKS}/{name}", Reason.BAD_ANNOTATION, "another mask has this name")
        for folder, files in ((XML, xml), (MASKS, masks)):
            for stem in sorted(files.keys() - photos.keys()):
                yield refused(f"{folder}/{files[stem]}", Reason.MISSING, f"no photo of its name in {PHOTOS}")
        for stem in sorted(splits.keys() - photos.keys() - xml.keys() - masks.keys()):
            yield refused(f"{PHOTOS}/{stem}.jpg", Reason.MISSING, "a list in ImageSets names it, and it is not there")

    def _check_folders(self) -> None:
        """
        Raises:
            SourceError: if a folder is missing: with `render` at its default one of the two kinds of annotation is
                enough.
        """
        root = self.config.input
        need_folders(root, FORM, PHOTOS)
        wanted = [folder for folder, used in ((XML, self._boxes), (MASKS, self._masks)) if used]
        if self.config.render != type(self.config).model_fields["render"].default:
            need_folders(root, FORM, *wanted)
        elif not any((root / folder).is_dir() for folder in wanted):
            raise SourceError(f"neither {XML} nor {MASKS} in {root}: expected {FORM}")

    def _looked_in(self) -> str:
        return " or ".join(folder for folder, used in ((XML, self._boxes), (MASKS, self._masks)) if used)

    def _described(
        self, stems: list[str], xml: dict[str, str]
    ) -> tuple[dict[str, list[int]], dict[str, RejectedInput]]:
        """Palette places of the objects of each photo, in the order of its XML file; and the files that are damaged."""
        names: dict[str, tuple[str, ...]] = {}
        damaged: dict[str, RejectedInput] = {}
        known: dict[str, str] = {}
        for stem in stems:
            try:
                listed = self._objects(xml[stem]).names
            except RejectedInput as rejected:
                damaged[stem] = rejected
            else:
                names[stem] = tuple(known.setdefault(name, name) for name in listed)
        others = sorted(known.keys() - set(VOC_CLASSES))
        places = {name: place for place, name in enumerate((*VOC_CLASSES, *others), start=1)}
        return {stem: [places[name] for name in listed] for stem, listed in names.items()}, damaged

    def _splits(self) -> dict[str, str]:
        """Name → split, by VOC's lists where they are there.

        Raises:
            SourceError: if a photo is in two of them.
        """
        folder = self.config.input / "ImageSets" / ("Main" if self._boxes else "Segmentation")
        found: dict[str, str] = {}
        for split in SPLITS:
            path = folder / f"{split}.txt"
            for line in listed_lines(path, MAX_LIST_BYTES) if path.is_file() else ():
                for name in line.split()[:1]:
                    if found.setdefault(name, split) != split:
                        raise SourceError(f"{path}: {name!r} is in {found[name]}.txt too")
        return found

    def _item(
        self, origin: str, xml: str | None, mask: str | None, classes: list[int] | None, split: str | None
    ) -> Item:
        item: dict[str, Any] = {"origin": origin}
        if xml is not None:
            # Places, not names: they depend on the other files too, so they are part of what a shard is made from.
            item |= {"xml": xml, "classes": classes}
        if mask is not None:
            item["mask"] = f"{MASKS}/{mask}"
        if split is not None:
            item["split"] = split
        paths = [origin, *([f"{XML}/{xml}"] if xml else []), *([item["mask"]] if mask else [])]
        return item | {"bytes": sizes(self.config.input, paths)}

    def open(self, item: Item) -> AnnotatedImage:
        origin = item["origin"]
        objects = self._objects(item["xml"]) if "xml" in item else None
        classes = np.array(item.get("classes", ()), np.int64)
        if objects is not None and len(objects.names) != len(classes):
            raise RejectedInput(Reason.BAD_ANNOTATION, f"{XML}/{item['xml']} has changed since planning")
        ids = self._ids(item["mask"]) if "mask" in item else None
        said = objects.size if objects is not None else None
        if said is None and ids is not None:
            said = (ids.shape[1], ids.shape[0])
        pixels, size = self._photo(origin, said)
        if ids is not None:
            check_size(ids, item["mask"], pixels)
        annotations: list[Annotation] = []
        for kind in self._renders:
            if kind in ("boxes", "filled_boxes") and objects is not None:
                path, over = f"{XML}/{item['xml']}", self.config.boxes_over_image
                annotations += box_annotations(kind, path, objects.xywh, classes, over)
            elif kind == "segmentation" and ids is not None:
                annotations.append(Annotation(kind, item["mask"], draw_ids(ids)))
            elif kind == "foreground" and ids is not None:
                for place in np.unique(ids[ids > 0]).tolist():
                    draw = draw_foreground(_mask_of(ids, place), [0])
                    annotations.append(Annotation(kind, item["mask"], draw, group=str(place)))
        people = objects.xywh[classes == PERSON] if self._shows_people and objects is not None else None
        return AnnotatedImage(pixels, size, origin, tuple(annotations), people)

    def _objects(self, name: str) -> VocObjects:
        """
        Raises:
            RejectedInput: names the file.
        """
        with naming(f"{XML}/{name}"):
            return read_objects(read_bytes(self.config.input / XML / name, MAX_XML_BYTES))

    def _ids(self, path: str) -> Labels:
        """`(H, W)` places in the palette."""
        ids = open_labels(self.config, path)
        ids[ids == VOID] = 0
        if int(ids.min()) < 0 or int(ids.max()) >= PALETTE_SIZE:
            worst = int(ids.max()) if int(ids.max()) >= PALETTE_SIZE else int(ids.min())
            raise RejectedInput(Reason.BAD_ANNOTATION, f"{path}: class {worst} is outside the palette's {PALETTE_SIZE}")
        return ids

    def _photo(self, path: str, said: tuple[int, int] | None) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """The photo, upright unless its annotations were made for it as stored, which only their size can tell.

        Raises:
            RejectedInput: if neither has the size that the annotations say.
        """
        data = read_bytes(self.config.input / path, self.config.max_bytes)
        pixels, size = decode_image(data, max_pixels=self.config.max_pixels)
        if said is not None and size == said[::-1] != said:
            pixels, size = decode_image(data, max_pixels=self.config.max_pixels, upright=False)
        if said not in (None, size):
            raise RejectedInput(Reason.BAD_ANNOTATION, f"photo is {size}, its annotation says {said}")
        return pixels, size


def _xml_by_stem(folder: Path) -> dict[str, str]:
    """Stem → name of the XML files directly in a folder, which need not be there; links out of it are left out."""
    if not folder.is_dir():
        return {}
    resolved = folder.resolve()
    return {
        path.stem: path.name
        for path in folder.iterdir()
        if path.suffix.lower() == ".xml"
        and not path.name.startswith(".")
        and path.is_file()
        and path.resolve().is_relative_to(resolved)
    }


def _mask_of(ids: Labels, place: int) -> MasksAfter:
    def masks(transform: Transform) -> list[NDArray[np.bool_]]:
        return [transform.labels(ids) == place]

    return masks

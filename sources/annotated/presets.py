"""Published data sets as settings of kind `files`: which photos, which maps, in what form.

The input is the folder into which a data set's own archives were unpacked, with the names that they have in them.
"""

from __future__ import annotations

from dataclasses import dataclass

from uvd.sources.annotated.map_form import MapForm

PICTURES = "{jpg,jpeg,png,webp,bmp,tif,tiff,ppm,JPG,JPEG,PNG}"
FLOAT_MAPS = "{png,npy,pfm,exr,tif,tiff}"


@dataclass(frozen=True, slots=True)
class Preset:
    """
    Attributes:
        images: pattern of the photos.
        maps: role → form.
        splits: whether folders named `train`, `val2017`, `validation`, ... say the split.
    """

    images: str
    maps: dict[str, MapForm]
    splits: bool = True


_CITYSCAPES_VOID = (0, 1, 2, 3, 4, 5, 6)
"""Ids of the category "void" in the official list: unlabelled, ego vehicle, rectification border, out of region of
interest, static, dynamic, ground. The classes left out of the benchmark's 19 are drawn too."""

PRESETS: dict[str, Preset] = {
    # ADEChallengeData2016 (scene parsing): 150 classes from 1, 0 is "other".
    "ade20k": Preset(
        "images/{training,validation}/*.jpg",
        {"segmentation": MapForm(files="annotations/{training,validation}/*.png", form="labels")},
    ),
    # leftImg8bit, gtFine and, if it is there, disparity: (p - 1) / 256 for p > 0, 0 is not known.
    "cityscapes": Preset(
        "leftImg8bit/*/*/*_leftImg8bit.png",
        {
            "segmentation": MapForm(files="gtFine/*/*/*_gtFine_labelIds.png", form="labels", void=_CITYSCAPES_VOID),
            "disparity": MapForm(files="disparity/*/*/*_disparity.png", form="disparity", optional=True),
        },
    ),
    # COCO's image archives in images/, stuffthingmaps_trainval2017 in annotations/ (as the data set's own page places
    # them): ids are COCO's less 1, 255 is unlabelled.
    "coco-stuff": Preset(
        "images/{train,val}2017/*.jpg",
        {"segmentation": MapForm(files="annotations/{train,val}2017/*.png", form="labels", void=(255,), add=1)},
    ),
    # VOCdevkit/VOC2012 (or 2007): 20 classes from 1, 0 is background, 255 the border around objects. Most photos have
    # no mask and are refused by name.
    "voc-segmentation": Preset(
        "JPEGImages/*.jpg",
        {
            "segmentation": MapForm(files="SegmentationClass/*.png", form="labels", void=(255,)),
            "instances": MapForm(files="SegmentationObject/*.png", form="labels", void=(255,), optional=True),
            "foreground": MapForm(files="SegmentationClass/*.png", form="labels", void=(255,), foreground=True),
        },
        splits=False,
    ),
    # Synchronised frames in the form in which depth networks are trained (sync/SCENE/rgb_00001.jpg beside
    # sync_depth_00001.png, official_splits/test/SCENE/...): 16 bits, millimetres.
    "nyu-depth": Preset(
        "**/rgb_*.{jpg,png}",
        {"depth": MapForm(files="**/sync_depth_*.png", form="depth", scale=1000)},
    ),
    # Raw recordings (DATE/DRIVE/image_02/data/NAME.png) and data_depth_annotated (train|val/DRIVE/proj_depth/...) in
    # one folder: 16 bits, 256 a metre, sparse: 0 is not known.
    "kitti-depth": Preset(
        "{*}/*/image_{02,03}/data/*.png",
        {"depth": MapForm(files="{*}/*/proj_depth/groundtruth/image_{02,03}/*.png", form="depth", scale=256)},
    ),
    # Any two folders: rain, noise, low light, blur, low resolution, style; and what it should become.
    "pairs": Preset(
        f"input/*.{PICTURES}",
        {"target": MapForm(files=f"target/*.{PICTURES}", form="picture")},
        splits=False,
    ),
    # Two views, and disparity of the left one where it is there.
    "stereo": Preset(
        f"left/*.{PICTURES}",
        {
            "right": MapForm(files=f"right/*.{PICTURES}", form="picture"),
            "disparity": MapForm(files=f"disparity/*.{FLOAT_MAPS}", form="disparity", optional=True),
        },
        splits=False,
    ),
}
"""Kind → what it stands for."""

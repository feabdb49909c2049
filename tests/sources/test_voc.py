"""Kind `voc`: drawings lie on their objects, ids follow VOC's order, damage costs one photo, XML cannot harm."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests_support import dataset_bytes

from uvd.manifests import Dataset
from uvd.manifests.verify import verify
from uvd.pipeline.config import config_entry
from uvd.pipeline.ingest import make_shard, plan
from uvd.renderers.palette import PALETTE
from uvd.sequences import Example, Reject, Seeds, fit
from uvd.sequences.reject import RejectedInput
from uvd.sources.annotated.config import AnnotatedConfig
from uvd.sources.annotated.source import AnnotatedSource
from uvd.sources.annotated.voc import VocReader
from uvd.sources.annotated.voc_xml import PERSON, VOC_CLASSES, read_objects
from uvd.sources.base import SourceError
from uvd.sources.xml_safe import MAX_DEPTH, MAX_ELEMENTS, UnsafeXmlError, parse_xml

SIDE = 256
DOG = 12
BOX = (41, 61, 140, 180)
"""xmin, ymin, xmax, ymax: pixels 40 to 139 and 60 to 179 counted from 0."""


def xml(*objects: str, size: str = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>") -> str:
    return f"<annotation><folder>VOC2012</folder>{size}{''.join(objects)}</annotation>"


def voc_object(name: str = "dog", box: tuple[float, ...] = BOX, more: str = "") -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    listed = "".join(f"<{key}>{value}</{key}>" for key, value in edges)
    return f"<object><name>{name}</name>{more}<bndbox>{listed}</bndbox></object>"


def write_image(path: Path, pixels: np.ndarray, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **more)


def add(root: Path, name: str, annotation: str | None = None, mask: np.ndarray | None = None, side: int = SIDE) -> None:
    """A photo of one grey, and what belongs to it."""
    write_image(root / "JPEGImages" / f"{name}.jpg", np.full((side, side, 3), 90, np.uint8))
    if annotation is not None:
        put_text(root / "Annotations" / f"{name}.xml", annotation)
    if mask is not None:
        image = Image.fromarray(mask, mode="P")
        image.putpalette([7 * value % 256 for value in range(768)])
        path = root / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def put_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def labels() -> np.ndarray:
    """A dog, a person below it, and void around the dog."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[55:185, 35:145] = 255
    mask[60:180, 40:140] = DOG
    mask[200:240, 20:220] = PERSON
    return mask


def config(root: Path, **more: Any) -> AnnotatedConfig:
    return AnnotatedConfig.model_validate({"dataset": "d", "kind": "voc", "input": root} | more)


def read(root: Path, **more: Any) -> tuple[list[Example], dict[str, str]]:
    """Examples, and reason with detail by origin of what was refused; checks the accounting."""
    source = AnnotatedSource(config(root, **more))
    examples, rejects = [], {}
    for unit in source.plan():
        outcomes = list(source.read(unit, Seeds(0)))
        indices = [item.inputs[0] if isinstance(item, Example) else item.input for item in outcomes]
        assert set(indices) == set(range(unit.num_inputs))
        examples += [item for item in outcomes if isinstance(item, Example)]
        refused = [item for item in outcomes if isinstance(item, Reject)]
        rejects |= {item.origin: f"{item.reason}: {item.detail}" for item in refused}
        assert len(rejects) >= len(refused)
    return examples, rejects


def pictures(example: Example) -> dict[str, np.ndarray]:
    return {picture.role: picture.pixels for picture in example.pictures}


def test_pixels_counted_from_one_and_boxes_agree_with_masks(tmp_path):
    add(tmp_path, "a", xml(voc_object()), labels())
    ((example,), rejects) = read(tmp_path, boxes_over_image=False)
    assert rejects == {}
    drawn = pictures(example)
    assert list(drawn) == ["image", "boxes", "segmentation"]
    dog = np.argwhere((drawn["segmentation"] == PALETTE[DOG]).all(axis=-1))
    box = np.argwhere((drawn["boxes"] == PALETTE[DOG]).all(axis=-1))
    assert dog.min(axis=0).tolist() == box.min(axis=0).tolist() == [60, 40]
    assert dog.max(axis=0).tolist() == box.max(axis=0).tolist() == [179, 139]
    assert all(picture.drawn for picture in example.pictures[1:])


def test_void_is_black_and_other_classes_have_their_colours(tmp_path):
    add(tmp_path, "a", None, labels())
    ((example,), _) = read(tmp_path, render=["segmentation"])
    picture = pictures(example)["segmentation"]
    assert not picture[57, 37].any()
    assert picture[220, 100].tolist() == PALETTE[PERSON].tolist()
    assert not picture[10, 10].any()


def test_foreground_is_one_example_a_class_and_its_sequences_hold_no_other(tmp_path):
    for name in ("a", "b"):
        add(tmp_path, name, None, labels())
    examples, _ = read(tmp_path, render=["foreground"])
    assert sorted(example.group for example in examples) == ["12", "12", "15", "15"]
    for example in examples:
        mask = pictures(example)["foreground"]
        assert {tuple(value) for value in mask.reshape(-1, 3).tolist()} == {(0, 0, 0), (255, 255, 255)}
        inside = labels() == int(example.group)
        assert np.array_equal(mask[..., 0] == 255, inside)


def test_filled_boxes_are_white_on_black(tmp_path):
    add(tmp_path, "a", xml(voc_object()))
    ((example,), _) = read(tmp_path, render=["filled_boxes"])
    white = pictures(example)["filled_boxes"] == 255
    assert white[60:180, 40:140].all()
    assert white.sum() == 120 * 100 * 3


def test_difficult_truncated_parts_and_fractions(tmp_path):
    """Fractions as in VOC 2012; parts (heads, hands) are no objects of their own, and their names are no classes."""
    parts = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    more = f"<difficult>1</difficult><truncated>1</truncated><occluded>1</occluded>{parts}"
    fractions = (45.70000076293945, 61.5, 140.25, 180)
    add(tmp_path, "a", xml(voc_object("person", fractions, more)))
    ((example,), _) = read(tmp_path, boxes_over_image=False)
    box = pictures(example)["boxes"]
    assert {tuple(value) for value in box.reshape(-1, 3).tolist()} == {(0, 0, 0), tuple(PALETTE[PERSON].tolist())}
    described = read_objects(xml(voc_object("person", fractions, more)).encode())
    assert described.names == ("person",)
    assert np.allclose(described.xywh, [[44.7, 60.5, 95.55, 119.5]], atol=1e-6)


def test_a_box_of_one_pixel_is_drawn(tmp_path):
    add(tmp_path, "a", xml(voc_object(box=(10, 10, 10, 10))))
    ((example,), _) = read(tmp_path, boxes_over_image=False)
    assert np.argwhere(pictures(example)["boxes"].any(axis=-1)).tolist() == [[9, 9]]


def test_other_names_follow_the_twenty_whatever_the_order_of_files(tmp_path):
    """VOC's own classes keep their colours; a name in one file moves those of the others, so plans say it."""
    places = {}
    for number, name in enumerate(("zebra", "cat", "apple")):
        add(tmp_path, f"{number}", xml(voc_object(name)))
    for item in VocReader(config(tmp_path)).items():
        places[item["origin"]] = item["classes"]
    assert places == {"JPEGImages/0.jpg": [22], "JPEGImages/1.jpg": [8], "JPEGImages/2.jpg": [21]}
    add(tmp_path, "3", xml(voc_object("mango")))
    again = {item["origin"]: item["classes"] for item in VocReader(config(tmp_path)).items()}
    assert again["JPEGImages/0.jpg"] == [23]
    assert VOC_CLASSES.index("cat") + 1 == 8
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size><width/></size>"])
def test_an_absent_size_is_tolerated(tmp_path, size):
    add(tmp_path, "a", xml(voc_object(), size=size))
    examples, rejects = read(tmp_path)
    assert len(examples) == 1
    assert rejects == {}


def damaged() -> dict[str, str]:
    entity = '<!DOCTYPE a [<!ENTITY e "12">]>' + xml(voc_object()).replace("41", "&e;")
    external = '<!DOCTYPE a SYSTEM "file:///etc/passwd">' + xml(voc_object())
    sized = "<size><width>300</width><height>256</height></size>"
    return {
        "size": xml(voc_object(), size=sized),
        "size-words": xml(voc_object(), size="<size><width>wide</width><height>1</height></size>"),
        "cut": xml(voc_object())[:-20],
        "empty": "",
        "entity": entity,
        "external": external,
        "root": xml(voc_object()).replace("annotation>", "annotations>"),
        "no-name": xml(voc_object("")),
        "no-box": xml("<object><name>dog</name></object>"),
        "half-a-box": xml(voc_object()).replace("<xmax>140</xmax>", ""),
        "nan": xml(voc_object(box=(float("nan"), 2, 3, 4))),
        "infinite": xml(voc_object(box=(1, 2, float("inf"), 4))),
        "huge": xml(voc_object(box=(1, 2, 1e300, 4))),
        "words": xml(voc_object()).replace("140", "dog"),
        "inverted": xml(voc_object(box=(100, 10, 50, 60))),
        "encoding": '<?xml version="1.0" encoding="no-such"?>' + xml(voc_object()),
    }


def test_damage_costs_one_photo_and_no_message_quotes_a_name(tmp_path):
    add(tmp_path, "good", xml(voc_object()))
    for name, content in damaged().items():
        add(tmp_path, name, content.replace("dog", "secret-dog"))
    examples, rejects = read(tmp_path)
    assert [example.pictures[0].origin for example in examples] == ["JPEGImages/good.jpg"]
    assert rejects.keys() == {f"JPEGImages/{name}.jpg" for name in damaged()}
    for message in rejects.values():
        assert message.startswith("bad_annotation: ")
        assert "secret" not in message
    assert "object 1 has no bndbox/xmax" in rejects["JPEGImages/half-a-box.jpg"]
    assert "(300, 256)" in rejects["JPEGImages/size.jpg"]


def test_a_damaged_mask_costs_its_photo(tmp_path):
    add(tmp_path, "good", None, labels())
    add(tmp_path, "small", None, labels()[:100])
    add(tmp_path, "colours")
    write_image(tmp_path / "SegmentationClass/colours.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    add(tmp_path, "cut", None, labels())
    path = tmp_path / "SegmentationClass/cut.png"
    path.write_bytes(path.read_bytes()[:-200])
    add(tmp_path, "beyond")
    write_image(tmp_path / "SegmentationClass/beyond.png", np.full((SIDE, SIDE), 2048, np.uint16))
    examples, rejects = read(tmp_path, render=["segmentation"])
    assert len(examples) == 1
    reasons = {origin.partition("/")[2]: message.partition(":")[0] for origin, message in rejects.items()}
    assert reasons == {
        "small.jpg": "bad_annotation",
        "colours.jpg": "bad_annotation",
        "cut.jpg": "truncated",
        "beyond.jpg": "bad_annotation",
    }


def test_whatever_has_no_partner_is_named(tmp_path):
    add(tmp_path, "a", xml(voc_object()))
    add(tmp_path, "alone")
    add(tmp_path, "nothing-in-it", xml())
    write_image(tmp_path / "JPEGImages/a.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    put_text(tmp_path / "Annotations/lost.xml", xml(voc_object()))
    write_image(tmp_path / "SegmentationClass/lost.png", labels())
    put_text(tmp_path / "Annotations/._a.xml", "what macOS leaves")
    examples, rejects = read(tmp_path)
    assert len(examples) == 1
    assert {origin: message.partition(":")[0] for origin, message in rejects.items()} == {
        "JPEGImages/alone.jpg": "no_annotation",
        "JPEGImages/nothing-in-it.jpg": "no_annotation",
        "JPEGImages/a.png": "no_annotation",
        "Annotations/lost.xml": "missing",
        "SegmentationClass/lost.png": "missing",
    }
    examples, rejects = read(tmp_path, derive=["grey"])
    assert len(examples) == 3
    assert rejects.keys() == {"JPEGImages/a.png", "Annotations/lost.xml", "SegmentationClass/lost.png"}


def test_splits_come_from_the_lists(tmp_path):
    for name in "abc":
        add(tmp_path, name, xml(voc_object()), labels())
    put_text(tmp_path / "ImageSets/Main/train.txt", "a\n")
    put_text(tmp_path / "ImageSets/Main/val.txt", "b 1\nlost -1\n\n")
    put_text(tmp_path / "ImageSets/Main/dog_train.txt", "a -1\n")
    put_text(tmp_path / "ImageSets/Segmentation/test.txt", "a\n")
    examples, rejects = read(tmp_path)
    assert [example.split for example in examples] == ["train", "val", "train"]
    assert rejects.keys() == {"JPEGImages/lost.jpg"}
    examples, _ = read(tmp_path, render=["segmentation"])
    assert [example.split for example in examples] == ["test", "train", "train"]
    put_text(tmp_path / "ImageSets/Main/train.txt", "a\nb\n")
    with pytest.raises(SourceError, match=r"val\.txt: 'b' is in train\.txt too"):
        read(tmp_path)


@pytest.mark.parametrize("said", [(200, 100), (100, 200)])
def test_boxes_of_photos_that_exif_turns(tmp_path, said):
    """The size tells which way up the boxes are meant: as stored (200x100), or as EXIF turns it (100x200)."""
    pixels = np.full((100, 200, 3), 60, np.uint8)
    pixels[:, :100] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "JPEGImages/a.jpg", pixels, exif=exif)
    size = "<size><width>{}</width><height>{}</height></size>".format(*said)
    put_text(tmp_path / "Annotations/a.xml", xml(voc_object(), size=size))
    ((example,), _) = read(tmp_path)
    assert example.pictures[0].size == said
    bright = example.pictures[0].pixels[..., 0] > 130
    halves = bright[:, :128] if said == (200, 100) else bright[:128]
    assert halves.mean() > 0.98
    assert bright.mean() < 0.52


def test_people_are_handed_to_networks_that_want_boxes(tmp_path):
    add(tmp_path, "a", xml(voc_object(), voc_object("person", (11, 21, 30, 60))), labels())
    files = {"config": "c.py", "checkpoint": "c.pth", "boxes": "given", "backend": "mmpose"}
    reader = VocReader(config(tmp_path, render=["segmentation"], estimate={"pose": files}))
    (item,) = reader.items()
    image = reader.open(item)
    assert image.people is not None
    assert image.people.tolist() == [[10, 20, 20, 40]]
    assert [annotation.role for annotation in image.annotations] == ["segmentation"]
    assert VocReader(config(tmp_path)).open(next(VocReader(config(tmp_path)).items())).people is None


def test_a_file_that_changes_after_planning_is_noticed(tmp_path):
    add(tmp_path, "a", xml(voc_object()))
    reader = VocReader(config(tmp_path))
    (item,) = reader.items()
    add(tmp_path, "a", xml(voc_object(), voc_object("cat")))
    with pytest.raises(RejectedInput, match="changed since planning"):
        reader.open(item)


def test_what_is_no_voc_folder_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="JPEGImages"):
        read(tmp_path)
    add(tmp_path, "a")
    with pytest.raises(SourceError, match="neither Annotations nor SegmentationClass"):
        read(tmp_path)
    add(tmp_path, "a", xml(voc_object()))
    with pytest.raises(SourceError, match="SegmentationClass"):
        read(tmp_path, render=["boxes", "segmentation"])
    with pytest.raises(SourceError, match="keypoints"):
        read(tmp_path, render=["pose", "boxes"])


def test_into_a_dataset_twice_the_same_and_no_name_in_it(tmp_path):
    root = tmp_path / "in"
    for number in range(9):
        add(root, f"{number}", xml(voc_object("secret-thing"), voc_object()), labels() if number % 2 else None)
    add(root, "broken", xml(voc_object("secret-thing")).replace("140", "secret-thing"))
    settings = config(root, shard_size=4)
    for out in (tmp_path / "one", tmp_path / "two"):
        dataset, entry = Dataset(str(out)), config_entry(settings)
        dataset.declare("sequences", settings.folder, entry)
        for job in plan(dataset, settings, entry["fingerprint"]):
            counts = make_shard(job).counts
            assert counts["inputs"] == counts["used"] + counts["rejected"] == job.unit.num_inputs
        assert verify(dataset, deep=True).problems == []
    assert dataset_bytes(tmp_path / "one") == dataset_bytes(tmp_path / "two")
    rows = [str(dataset.manifest(s).to_pylist()) for s in dataset.shards("sequences/annotated")]
    rows += [str(dataset.rejects(s).to_pylist()) for s in dataset.shards("sequences/annotated")]
    assert "broken" in "".join(rows)
    assert "secret" not in "".join(rows)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
HOSTILE: dict[str, Callable[[], bytes]] = {
    "laughs": lambda: f'<!DOCTYPE a [<!ENTITY l0 "lol">{LAUGHS}]><a>&l9;</a>'.encode(),
    "external": lambda: b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>',
    "parameter": lambda: b'<!DOCTYPE a [<!ENTITY % e SYSTEM "http://127.0.0.1/">%e;]><a/>',
    "document-type": lambda: b"<!DOCTYPE annotation><annotation/>",
    "deep": lambda: b"<a>" * (MAX_DEPTH + 1) + b"</a>" * (MAX_DEPTH + 1),
    "wide": lambda: b"<a>" + b"<b/>" * MAX_ELEMENTS + b"</a>",
    "unknown-entity": lambda: b"<a>&nothing;</a>",
    "nothing": lambda: b"",
    "image": lambda: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "two-roots": lambda: b"<a/><a/>",
    "encoding": lambda: b'<?xml version="1.0" encoding="utf-7"?><a/>',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_xml_is_refused(name):
    with pytest.raises(UnsafeXmlError):
        parse_xml(HOSTILE[name]())


def test_plain_xml_is_read_in_its_encoding():
    for encoding in ("utf-8", "utf-16", "iso-8859-1"):
        data = f'<?xml version="1.0" encoding="{encoding}"?><a b="c"><!-- no --><d>é &amp; x</d></a>'.encode(encoding)
        root = parse_xml(data)
        assert root.attrib == {"b": "c"}
        assert root.findtext("d") == "é & x"
    nested = io.BytesIO()
    nested.write(b"<a>" * MAX_DEPTH + b"</a>" * MAX_DEPTH)
    assert parse_xml(nested.getvalue()).tag == "a"


def test_boxes_go_through_the_same_transform_as_the_photo(tmp_path):
    """A photo that is wider than high: the centre crop cuts 100 pixels on each side."""
    pixels = np.full((300, 500, 3), 60, np.uint8)
    pixels[100:200, 150:250] = (250, 40, 40)
    write_image(tmp_path / "JPEGImages/a.png", pixels)
    size = "<size><width>500</width><height>300</height></size>"
    put_text(tmp_path / "Annotations/a.xml", xml(voc_object(box=(151, 101, 250, 200)), size=size))
    ((example,), _) = read(tmp_path, render=["filled_boxes"])
    red = pictures(example)["image"][..., 0] > 155
    assert np.array_equal(pictures(example)["filled_boxes"][..., 0] == 255, red)
    assert fit(500, 300).x == 100

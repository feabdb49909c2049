"""Which objects are taken, for training or for testing, and what their roles become."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from object_support import InThisProcess, textured_glb, write

from uvd.pipeline.config import override
from uvd.renderers.multiview_maps import VIEW_ROLES
from uvd.renderers.multiview_scene import TooManyFaces
from uvd.sequences import Example, Seeds, VisualSequence
from uvd.sequences.layouts import LAYOUTS, assemble
from uvd.sequences.reject import Reason
from uvd.sequences.seeds import split_of
from uvd.sources.base import refused
from uvd.sources.objaverse import ObjaverseConfig, ObjaverseSource, Role
from uvd.sources.objaverse_splits import chosen

SHARES = {"test": 0.16}


def objects(count: int) -> list[dict[str, Any]]:
    return [{"origin": f"000-000/{number:032x}.glb", "bytes": 1} for number in range(count)]


def sides(items: list[Any]) -> dict[str, str]:
    return {item["origin"]: split_of(item["origin"][8:-4], SHARES) for item in items}


def test_as_many_of_each_side_as_wanted_whatever_there_is() -> None:
    counts = {"train": 420, "test": 80}
    for there in (1, 100, 400, 600, 2000, 5000):
        items = objects(there)
        taken = chosen(items, SHARES, counts)
        for split, count in counts.items():
            available = list(sides(items).values()).count(split)
            assert list(sides(taken).values()).count(split) == min(count, available)
        assert taken == [item for item in items if item in taken]  # in their order
    assert len(taken) == 500


def test_new_objects_change_nobodys_side() -> None:
    few, many = (chosen(objects(count), SHARES, {"train": 420, "test": 80}) for count in (1000, 3000))
    both = sides(few).keys() & sides(many).keys()
    assert len(both) > 100
    assert all(sides(few)[origin] == sides(many)[origin] for origin in both)
    assert {int(item["origin"][8:-4], 16) // 1000 for item in many} == {0, 1, 2}  # from all over, not the first ones


def test_what_is_taken_does_not_depend_on_order_or_folder() -> None:
    items = objects(1000)
    taken = chosen(items, SHARES, {"train": 100, "test": 10})
    assert chosen(items[::-1], SHARES, {"train": 100, "test": 10}) == taken[::-1]
    moved = [{**item, "origin": f"glbs/{item['origin']}"} for item in items]
    assert [item["origin"][5:] for item in chosen(moved, SHARES, {"train": 100, "test": 10})] == [
        item["origin"] for item in taken
    ]


def test_splits_without_a_count_and_refused_items_are_not_limited() -> None:
    items = [*objects(500), refused("b.glb", Reason.MISSING, "gone")]
    assert chosen(items, SHARES, {}) == items
    taken = chosen(items, SHARES, {"train": 0})
    assert taken[-1] == items[-1]
    assert set(sides(taken[:-1]).values()) == {"test"}


def test_folders_are_cut_to_the_counts_with_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for item in objects(60):
        write(tmp_path / item["origin"], b"x")
    write(tmp_path / "l.txt", "\n".join(item["origin"] for item in objects(60)))

    def count(place: Path, settings: str = "") -> int:
        content = override({"input": place, "split_counts": {"train": 10, "test": 2}}, [settings] if settings else [])
        return sum(unit.num_inputs for unit in ObjaverseSource(ObjaverseConfig(**content)).plan())

    with caplog.at_level(logging.WARNING):
        assert count(tmp_path / "l.txt") == 60
        assert count(tmp_path, "split_counts={}") == 60
        assert caplog.messages == []
        assert count(tmp_path) == 12
    assert caplog.messages == [
        "objaverse: 12 of 60 objects are taken, at most 10 train, 2 test; split_counts: {} takes all"
    ]


def test_the_papers_counts_are_the_default() -> None:
    config = ObjaverseConfig(input=Path("."))
    assert (config.split_counts, config.holdout) == ({"train": 42_000, "test": 8_000}, {"test": 8_000 / 50_000})


# --- roles -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    for number in range(2):
        write(folder / f"{number}.glb", textured_glb(number))
    return folder


@pytest.fixture(autouse=True)
def _no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjaverseSource, "_child", lambda _: InThisProcess)


def examples(folder: Path, **changes: Any) -> list[Example]:
    source = ObjaverseSource(ObjaverseConfig(input=folder, **changes))
    (unit,) = source.plan()
    found = list(source.read(unit, Seeds(3)))
    assert all(isinstance(one, Example) for one in found)
    return [one for one in found if isinstance(one, Example)]


def arranged(folder: Path, **changes: Any) -> list[VisualSequence]:
    weights = ObjaverseConfig(input=folder, **changes).layouts
    found = assemble(examples(folder, **changes), LAYOUTS, weights, Seeds(3))
    return [one for one in found if isinstance(one, VisualSequence)]


def test_names_are_those_of_the_renderer() -> None:
    assert get_args(Role) == VIEW_ROLES
    assert ObjaverseConfig.model_fields["too_many_faces"].annotation == TooManyFaces


def test_each_role_has_sequences_of_the_same_views(folder: Path) -> None:
    plain = arranged(folder, views=18)
    sequences = arranged(folder, views=18, roles=("view", "depth", "mask"))
    assert len(sequences) == 3 * len(plain) == 12
    for index, one in enumerate(plain):
        view, depth, mask = sequences[3 * index : 3 * index + 3]
        assert [set(sequence.roles) for sequence in (view, depth, mask)] == [{"view"}, {"depth"}, {"mask"}]
        order = [picture.index for picture in one.pictures]
        for sequence in (view, depth, mask):
            assert [picture.index for picture in sequence.pictures] == order
        assert [sequence.pictures[0].drawn for sequence in (view, depth, mask)] == [False, True, True]
        for picture, alone in zip(view.pictures, one.pictures, strict=True):
            assert np.array_equal(picture.pixels, alone.pixels)
        for shape, near in zip(mask.pictures, depth.pictures, strict=True):
            assert set(np.unique(shape.pixels)) == {0, 255}
            assert not near.pixels[shape.pixels == 0].any()


def test_pairs_hold_a_view_and_one_of_its_maps(folder: Path) -> None:
    sequences = arranged(folder, views=6, roles=("view", "depth", "normals"), layouts={"pairs": 1.0}, holdout={})
    assert [sequence.roles for sequence in sequences] == [
        *(("view", "depth") * 8, ("view", "normals") * 8),
        *(("view", "depth") * 4, ("view", "normals") * 4),
    ]
    for sequence in sequences:
        for view, drawn in zip(sequence.pictures[::2], sequence.pictures[1::2], strict=True):
            assert (view.drawn, drawn.drawn) == (False, True)
            assert (view.origin, view.index) == (drawn.origin, drawn.index)


def test_tuples_and_singles(folder: Path) -> None:
    tuples = arranged(folder, views=4, roles=("view", "normals", "mask"), layouts={"tuples": 1.0})
    assert {role for sequence in tuples for role in sequence.roles} <= {"view", "normals", "mask"}
    singles = arranged(folder, views=4, roles=("view", "mask"), layouts={"single": 1.0})
    assert len(singles) == 2 * 4 * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layouts": {"pairs": 1.0}}, "two or more roles"),
        ({"layouts": {"pairs": 1.0, "multiview": 1.0}, "roles": ("view", "depth")}, "two sources"),
        ({"layouts": {"category": 1.0}}, "category does not fit"),
        ({"roles": ()}, "one or more"),
        ({"roles": ("view", "view")}, "each once"),
        ({"roles": ("view", "albedo")}, "albedo"),
        ({"roles": VIEW_ROLES, "views": 300}, "pictures"),
        ({"split_counts": {"train": -1}}, "greater than or equal"),
        ({"split_counts": {"dev": 1}}, "dev"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ObjaverseConfig(input=Path("."), **changes)

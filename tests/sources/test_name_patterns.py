"""Which files a pattern finds, what it captures in their paths, and what no pattern can be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uvd.sources.name_patterns import FoundFile, NamePattern, PatternError


@pytest.mark.parametrize(
    ("pattern", "path", "key"),
    [
        ("a.png", "a.png", ()),
        ("*.png", "a.b.png", ("a.b",)),
        ("*.png", "folder/a.png", None),
        ("*.png", "a.PNG", None),
        ("*.{jpg,png}", "a.png", ("a",)),
        ("*.{jpg,png}", "a.gif", None),
        ("*_*.png", "a_b_c.png", ("a", "b_c")),
        ("a*b*c", "a1bb2cc", ("1", "b2c")),
        ("*ab*ab", "abab", ("", "")),
        ("*ab*ab", "xab", None),
        ("x*x", "x", None),
        ("im[0]?.png", "im[0]?.png", ()),
        ("{train,val}2017/*.jpg", "val2017/7.jpg", ("val", "7")),
        ("{train,val}2017/*.jpg", "test2017/7.jpg", None),
        ("a{1,2}b*{c,d}/x", "a2bzd/x", ("2", "z", "d")),
        ("*/*/*.png", "a/b/c.png", ("a", "b", "c")),
        ("{*}/*.png", "a/b.png", ("b",)),
        ("**/*.png", "a.png", ("", "a")),
        ("**/*.png", "x/y/a.png", ("x/y", "a")),
        ("left/**/im*.png", "left/im3.png", ("", "3")),
        ("left/**/*/im*.png", "left/a/b/im3.png", ("a", "b", "3")),
        ("left/**/*/im*.png", "left/im3.png", None),
        ("*/**/x", "x", None),
    ],
)
def test_what_a_pattern_captures(pattern, path, key):
    assert NamePattern(pattern).key(path) == key
    assert key is None or NamePattern(pattern).captures == len(key)


@pytest.mark.parametrize(
    "bad",
    [
        *("", "/a", "a//b", "a/", "../a", "a/../b", "./a", "a\\b", "a\0", "**", "a/**", "**/**/a", "a**b", "***/a"),
        *("{a", "a}", "{a,{b,c}}", "{a**}/b"),
    ],
    ids=ascii,
)
def test_no_pattern(bad):
    with pytest.raises(PatternError):
        NamePattern(bad)


def test_too_many_alternatives():
    with pytest.raises(PatternError, match="over 64 alternatives"):
        NamePattern("{a,b}" * 7)


def test_hostile_names_cost_little():
    # A regular expression of as many stars would try 255^8 ways.
    assert NamePattern("*a*a*a*a*a*a*a*a*b").key("a" * 255) is None
    assert NamePattern("**/*a*a*a*b").key("/".join(["a" * 255] * 200)) is None


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def test_files_are_found_in_the_order_of_their_paths(tmp_path):
    write(tmp_path, "b/2.png", "b/10.png", "a/3.png", "a/3.txt", "a/deep/4.png", "1.png", ".hidden/5.png", "a/.6.png")
    assert NamePattern("*/*.png").files(tmp_path) == [
        FoundFile("a/3.png", 7, ("a", "3")),
        FoundFile("b/10.png", 8, ("b", "10")),
        FoundFile("b/2.png", 7, ("b", "2")),
    ]
    assert [file.path for file in NamePattern("**/*.png").files(tmp_path)] == [
        "1.png",
        "a/3.png",
        "a/deep/4.png",
        "b/10.png",
        "b/2.png",
    ]


def test_only_folders_that_may_hold_matches_are_listed(tmp_path, monkeypatch):
    write(tmp_path, "images/train/a/1.png", "images/val/b/2.png", "labels/train/3.png", "images/train/a/deep/4.png")
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    assert [file.path for file in NamePattern("images/{train,test}/*/*.png").files(tmp_path)] == [
        "images/train/a/1.png"
    ]
    assert listed == [tmp_path / path for path in ("", "images", "images/train", "images/train/a")]


def test_links_stay_inside_and_never_loop(tmp_path):
    root = tmp_path / "in"
    write(tmp_path, "in/a/1.png", "outside/2.png", "in2/3.png")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "similar").symlink_to(tmp_path / "in2")
    (root / "a" / "out.png").symlink_to(tmp_path / "outside" / "2.png")
    (root / "a" / "again.png").symlink_to(root / "a" / "1.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "broken.png").symlink_to(root / "nowhere")
    (root / "b").symlink_to(root / "a")
    found = [file.path for file in NamePattern("**/*.png").files(root)]
    assert found == ["a/1.png", "a/again.png", "b/1.png", "b/again.png"]


def test_an_input_that_is_a_link(tmp_path):
    write(tmp_path, "real/a/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [file.path for file in NamePattern("*/*.png").files(tmp_path / "link")] == ["a/1.png"]

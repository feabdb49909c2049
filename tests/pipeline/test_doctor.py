"""The doctor: every failing line says how to mend it."""

from __future__ import annotations

from uvd.pipeline import doctor
from uvd.renderers import gl


def test_a_probe_that_raises_is_a_finding_with_a_fix(monkeypatch):
    def broken():
        raise RuntimeError("no driver")

    monkeypatch.setattr(gl, "probe_gl", broken)
    found = {check.name: check for check in doctor.checks()}
    assert not found["OpenGL"].ok
    assert "no driver" in found["OpenGL"].finding
    assert "apt-get" in found["OpenGL"].fix


def test_a_full_disk_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 1e9)
    check = doctor._disk()
    assert not check.ok
    assert "free at least" in check.fix

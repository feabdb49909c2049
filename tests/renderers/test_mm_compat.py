from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from uvd.renderers import mm_compat


def test_suppression_keeps_the_best_and_what_does_not_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 10]], dtype=np.float64)
    assert mm_compat.suppress(boxes, np.array([0.8, 0.9, 0.1, 0.8]), 0.5) == [1, 2]
    assert mm_compat.suppress(boxes, np.array([0.8, 0.9, 0.1, 0.8]), 0.99) == [1, 0, 2]
    assert mm_compat.suppress(np.zeros((0, 4)), np.zeros(0), 0.5) == []


def test_nms_speaks_torch() -> None:
    torch = pytest.importorskip("torch")
    kept = mm_compat.nms(torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]]), torch.tensor([0.1, 0.2]), 0.5)
    assert kept.dtype == torch.int64
    assert kept.tolist() == [1]


def test_missing_operators_say_so_when_called() -> None:
    operators = mm_compat._operators_module()
    with pytest.raises(mm_compat.CompiledOperatorError, match="deform_conv"):
        operators.deform_conv_forward()
    with pytest.raises(AttributeError):
        _ = operators.__wrapped__


def test_install_leaves_no_torchvision_behind() -> None:
    pytest.importorskip("mmpose")
    real = find_spec("torchvision") is not None
    mm_compat.install()
    mm_compat.install()
    assert "mmpose.apis" in sys.modules
    assert ("torchvision" in sys.modules) == real


def test_real_packages_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = object()
    monkeypatch.setitem(sys.modules, "mmcv._ext", real)
    assert mm_compat._has_operators()
    assert sys.modules["mmcv._ext"] is real

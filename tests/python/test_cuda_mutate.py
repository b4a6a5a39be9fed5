"""The survey of barriers finds each of them, removes it alone and restores the source."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import cuda_mutate  # noqa: E402

KERNEL = """\
__global__ void Sum(int* out) {
  // __syncthreads(); in a comment is none
  __syncthreads();
  if (__syncthreads_or(out[0] > (1 + 2))) return;
  __syncwarp(0xffffu);
}
"""


def test_barriers_are_found_and_removed_one_at_a_time() -> None:
    path = ROOT / "cuda" / "sum.cu"
    barriers = list(cuda_mutate.find_barriers(path, KERNEL))
    assert [str(barrier) for barrier in barriers] == [
        "cuda/sum.cu 1 __syncthreads()",
        "cuda/sum.cu 2 __syncthreads_or(out[0] > (1 + 2))",
        "cuda/sum.cu 3 __syncwarp(0xffffu)",
    ]
    first, second, third = (barrier.removed_from(KERNEL) for barrier in barriers)
    lines = KERNEL.splitlines()
    assert first.splitlines() == [*lines[:2], "  static_cast<void>(0);", *lines[3:]]
    assert second.splitlines() == [*lines[:3], "  if ((out[0] > (1 + 2))) return;", *lines[4:]]
    assert third.splitlines() == [*lines[:4], "  static_cast<void>(0);", *lines[5:]]


def test_the_survey_reports_what_no_test_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_mutate, "ROOT", tmp_path)
    path = tmp_path / "sum.cu"
    path.write_text(KERNEL)

    def notice() -> str:
        source = path.read_text()
        assert source != KERNEL
        return "" if "__syncwarp" not in source else "race sum: SumTest.Sums"

    noticed = cuda_mutate.survey(cuda_mutate.all_barriers([path]), notice)
    assert path.read_text() == KERNEL
    assert list(noticed.values()) == ["race sum: SumTest.Sums"] * 2 + [""]


def test_a_source_is_restored_when_a_build_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_mutate, "ROOT", tmp_path)
    path = tmp_path / "sum.cu"
    path.write_text(KERNEL)

    def interrupt() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cuda_mutate.survey(cuda_mutate.all_barriers([path]), interrupt)
    assert path.read_text() == KERNEL

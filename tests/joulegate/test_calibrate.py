import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from emulator.core.presets import load_gpu
from joulegate.cli import app

HEAD = "kind,batch,n_in,n_out,shared,rounds,requests,seconds,joules,itl_p50_ms\n"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    file = tmp_path / "sweep.csv"
    file.write_text(HEAD + "decode,4,128,32,0,3,12,0.5,250,4.7\nprefill,1,512,1,0,20,20,0.5,250,0\n")
    return file


def calibrate(*arguments: object, gpu: str = "h200", model: str = "llama-2-7b") -> Result:
    words = [str(word) for word in (*arguments, "--gpu", gpu, "--model", model)]
    return CliRunner().invoke(app, ["calibrate", *words])


def test_check_reports_and_fits_nothing(sweep: Path) -> None:
    result = calibrate(sweep, "--check", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert set(report) == {"joules", "seconds", "itl", "rows"}
    assert set(report["joules"]) == set(report["seconds"]) == set(report["itl"]) == {"mape", "max"}
    decode, prefill = report["rows"]
    keys = {"kind", "batch", "n_in", "n_out", "shared", "rounds", "requests"}
    values = {"joules_measured", "joules_predicted", "seconds_measured", "seconds_predicted"}
    assert set(prefill) == keys | values
    assert set(decode) == keys | values | {"itl_measured", "itl_predicted"}
    assert (decode["kind"], decode["batch"], decode["itl_measured"]) == ("decode", 4, 4.7)
    error = 100 * abs(decode["joules_predicted"] / 250 - 1)
    assert report["joules"]["max"] >= round(error, 3)


def test_tables_for_a_person(sweep: Path) -> None:
    result = calibrate(sweep, "--check")
    assert result.exit_code == 0
    assert "prefill" in result.stdout and "mean (largest) error" in result.stdout


def test_a_fit_comes_nearer_and_is_written(sweep: Path, tmp_path: Path) -> None:
    before = json.loads(calibrate(sweep, "--check", "--json").stdout)
    file = tmp_path / "mine.yaml"
    after = json.loads(calibrate(sweep, "--json", "--out", file).stdout)
    assert after["joules"]["mape"] < before["joules"]["mape"]
    again = json.loads(calibrate(sweep, "--check", "--json", gpu=str(file)).stdout)
    assert again == after
    assert "sweep.csv (2 rows, llama-2-7b)" in load_gpu(str(file)).factors.sources["flop_j"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"gpu": "h20"}, "no gpu preset 'h20': did you mean h200?"),
        ({"model": "lama-2-7b"}, "no model preset 'lama-2-7b': did you mean llama-2-7b?"),
        ({"gpu": "a100-40g", "model": "llama-2-70b"}, "llama-2-70b on 1 x a100-40g: a card needs"),
    ],
)
def test_presets_that_are_not_right_are_one_line(sweep: Path, change: dict[str, str], fault: str) -> None:
    _one_line(calibrate(sweep, "--check", **change), fault)


def test_a_sweep_that_is_not_right_is_one_line(sweep: Path, tmp_path: Path) -> None:
    _one_line(calibrate(tmp_path / "none.csv"), "cannot be read")
    sweep.write_text("a,b\n1,2\n")
    _one_line(calibrate(sweep), "lacks the columns kind, batch")
    sweep.write_text(HEAD + "decode,4,5000,32,0,3,12,0.5,250,4.7\n")
    _one_line(calibrate(sweep, "--check"), "at most 4096, not 5032")


def _one_line(result: Result, fault: str) -> None:
    assert result.exit_code == 1
    assert fault in result.stderr
    assert result.stderr.count("\n") == 1

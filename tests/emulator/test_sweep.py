from pathlib import Path

import pytest

from emulator.core.presets import GpuPreset, ModelPreset
from emulator.sweep import Row, SweepError, emulate, read_sweep

HEAD = "kind,batch,n_in,n_out,shared,rounds,requests,seconds,joules,itl_p50_ms\n"
ROW = Row("decode", 4, 128, 32, 0, 3, 12, 1.0, 400.0, 4.6e-3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sweep.csv"


def test_rows_are_read(file: Path) -> None:
    file.write_text(HEAD + "decode,4,128,32,0,3,12,1,400,4.6\nprefill,1,128,1,0,3,3,1,300,0.0\n")
    assert read_sweep(file)[0] == ROW
    assert read_sweep(file)[1].itl_s is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kind,batch\n", "lacks the columns n_in, n_out, shared, rounds, requests, seconds, joules"),
        (HEAD, "has no rows"),
        (HEAD + "decode,four,128,32,0,3,12,1,400,4.6\n", "line 2: invalid literal"),
        (HEAD + "decode,4,128\n", "line 2: "),
        (HEAD + "decode,4,128,32,0,3,12,0,400,4.6\n", "above 0"),
        (HEAD + "decode,4,128,32,0,3,12,nan,400,4.6\n", "above 0"),
        (HEAD + "decode,4,128,32,200,3,12,1,400,4.6\n", "shared is 0 to n_in"),
        (HEAD + "decode,4,128,32,0,3,13,1,400,4.6\n", r"requests \(13\) must be batch x rounds \(12\)"),
        ("\0\0", "lacks the columns|cannot be read"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_one_line(file: Path, text: str, fault: str) -> None:
    file.write_text(text)
    with pytest.raises(SweepError, match=fault) as caught:
        read_sweep(file)
    assert "\n" not in str(caught.value)


def test_a_row_is_whole_rounds_and_whole_movements_of_the_counter(h200: GpuPreset, model: ModelPreset) -> None:
    outcome = emulate(ROW, h200, model)
    assert outcome.seconds * 10 == pytest.approx(round(outcome.seconds * 10))
    assert outcome.itl_s is not None
    assert 3 * 32 * outcome.itl_s < outcome.seconds < 3 * 32 * outcome.itl_s + 0.2
    assert 123 * outcome.seconds < outcome.joules < 700 * outcome.seconds


def test_nothing_is_decoded_where_one_token_is_asked_for(h200: GpuPreset, model: ModelPreset) -> None:
    assert emulate(Row("prefill", 2, 512, 1, 0, 4, 8, 1.0, 1.0, None), h200, model).itl_s is None


def test_a_shared_head_is_warm(h200: GpuPreset, model: ModelPreset) -> None:
    shared, own = (Row("search", 4, 3040, 1, head, 4, 16, 1.0, 1.0, None) for head in (3000, 0))
    assert emulate(shared, h200, model).joules < 0.5 * emulate(own, h200, model).joules

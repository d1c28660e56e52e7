import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from joulegate.report import joules_text, show
from proxy.energy import learnt
from proxy.energy.floor import Floor
from proxy.energy.learnt import Learnt
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_file import LedgerError
from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.records import (
    AttemptRecord,
    Batch,
    DayEnergy,
    DayRequests,
    DeviceRecord,
    Dropped,
    EnergyRecord,
    Outcome,
    Quality,
    RequestRecord,
    RunRecord,
    WindowRecord,
)


def books(quality: Quality, tenant: str = "default") -> Batch:
    """One run with a request that needed two attempts: 30 J wasted, 1234.567 J well spent, 300 J idle."""
    share = Quality.ATTRIBUTED if quality is Quality.MEASURED else quality
    request = RequestRecord(
        *(f"q{tenant}", f"u{tenant}", "query", None, "[]", "{}", "/v1/completions", 100.0, "m", 0),
        *(104.0, 200, Outcome.OK, 30, 10, 2000, "engine"),
    )
    return Batch(
        [RunRecord(f"u{tenant}", tenant, "r1", "search", 100.0, 104.0, "final")],
        [request],
        [
            AttemptRecord(request.id, 1, "e1", 100.0, 100.0, None, 101.0, 500, Outcome.FAILED),
            AttemptRecord(request.id, 2, "e1", 101.0, 101.0, 102.0, 104.0, 200, Outcome.OK),
        ],
        [
            EnergyRecord(request.id, 1, "d", share, "gpu", 30_000_000, 0, 0, 0),
            EnergyRecord(request.id, 2, "d", share, "gpu", 0, 1_234_567_000, 0, 0),
        ],
        [WindowRecord("d", 103, quality, 1_264_567_000, 300_000_000, 0, 0)],
        [DeviceRecord("d", "gpu", "H200", quality, 1_564_567_000, 0, 104.0)],
    )


def printed(path: Path, *batches: Batch, as_json: bool = False, pue: float = 1.0) -> str:
    ledger = Ledger(path / "ledger.sqlite")
    for batch in batches:
        ledger.write(batch)
    ledger.close()
    out = io.StringIO()
    show(LedgerReader(ledger.path), as_json, Console(file=out, width=200), {"d": pue})
    return out.getvalue()


def test_measured_figures(tmp_path: Path) -> None:
    text = printed(tmp_path, books(Quality.MEASURED))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "search 1 1 30 2,000 1.26 kJ 1.26 kJ 632 mJ 4.0" in rows
    assert "d 1.56 kJ 81 % 19 % 0 % 0 % 0 µJ measured" in rows
    assert "joules: attributed" in text
    assert "30.0 J of 1.26 kJ (2.4 %) went into attempts that bought nothing." in text
    assert "workflow joules wasted retried saved" in rows and "search 1.26 kJ 2.4 % 30.0 J 0 J" in rows
    assert "not spent" not in text, "the cache saved nothing"
    assert "≈" not in text and "stimate" not in text


def test_estimates_say_so_first_and_have_two_digits(tmp_path: Path) -> None:
    text = printed(tmp_path, books(Quality.ESTIMATED))
    assert text.startswith("Estimated: all joules")
    assert "≈ 1.3 kJ" in text and "≈ 630 mJ" in text and "≈ 1.6 kJ" in text and "≈ 30 J of" in text
    assert "1.26" not in text and "632" not in text and "1.56" not in text


def test_emulated_figures_say_so_first(tmp_path: Path) -> None:
    assert printed(tmp_path, books(Quality.EMULATED)).startswith("Emulated: all joules")


def test_what_the_cache_saved_is_said_apart(tmp_path: Path) -> None:
    def saving(quality: Quality) -> Batch:
        whole = books(Quality.MEASURED)
        return replace(whole, requests=[whole.requests[0]._replace(saved_uj=2_350_000, saved_quality=quality.value)])

    (tmp_path / "fitted").mkdir()
    text = printed(tmp_path / "fitted", saving(Quality.ATTRIBUTED))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "search 1.26 kJ 2.4 % 30.0 J 2.35 J" in rows
    assert "2.35 J were not spent, by the engine's fitted price: prompt tokens found in the prefix cache." in text
    guessed = printed(tmp_path, saving(Quality.ESTIMATED))
    assert "≈ 2.4 J were not spent, by a price that is not fitted to the engine yet" in guessed


def test_where_nothing_was_wasted_or_saved_no_table_says_so(tmp_path: Path) -> None:
    text = printed(tmp_path, replace(books(Quality.MEASURED), attempts=[], energy=[]), Batch())
    assert "Wasted and saved" not in text


def test_what_no_counter_saw_is_a_dash(tmp_path: Path) -> None:
    unseen = replace(books(Quality.MEASURED, "b"), energy=[])
    text = printed(tmp_path, books(Quality.MEASURED, "a"), unseen)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "b/search 1 1 30 2,000 - - - 4.0" in rows
    assert "30.0 J of 1.26 kJ (2.4 %) went into" in text, "the sum is over what is known"


def test_where_nothing_is_known_that_is_said(tmp_path: Path) -> None:
    text = printed(tmp_path, replace(books(Quality.MEASURED), energy=[], windows=[], devices=[]))
    assert "No counter saw what these workflows did" in text and "0 J" not in text and "No joule" not in text


def test_tenants_are_named_where_there_are_several(tmp_path: Path) -> None:
    text = printed(tmp_path, books(Quality.MEASURED, "a"), books(Quality.MEASURED, "b"))
    assert "a/search" in text and "b/search" in text


def test_names_are_no_markup_and_shares_are_plain_numbers(tmp_path: Path) -> None:
    batch = books(Quality.MEASURED)
    almost_all = batch.windows[0]._replace(idle_uj=999_000_000_000)
    renamed = batch.runs[0]._replace(workflow="[red]alert[/red]")
    device = batch.devices[0]._replace(counter_uj=1_000_264_567_000)
    text = printed(tmp_path, replace(batch, runs=[renamed], windows=[almost_all], devices=[device]))
    assert "[red]alert[/red]" in text and "100 %" in text and "0.13 %" in text


def test_what_the_whole_machine_took_is_said_by_host(tmp_path: Path) -> None:
    text = printed(tmp_path, books(Quality.MEASURED), pue=1.5)
    assert "d: a joule of work is 1.86 J of the whole machine\n" in text  # 1.5 x 1564.567 / 1264.567
    floor = Floor.of({"watts": 100.0, "workflow_uj": 100.0, "active_uj": 75.0})
    learnt.write(learnt.beside(tmp_path / "ledger.sqlite"), learnt.encode(Learnt(floors={"d": floor})))
    assert "d: a joule of work is 0.75 J above the loaded idle, and 1.24 J of the whole machine\n" in printed(tmp_path)


def test_json_keeps_every_microjoule(tmp_path: Path) -> None:
    figures = json.loads(printed(tmp_path, books(Quality.ESTIMATED), as_json=True))
    assert figures["workflows"][0]["joules"] == 1264.567 and figures["workflows"][0]["quality"] == "estimated"
    assert figures["devices"]["d"]["idle_j"] == 300.0
    assert figures["engines"]["e1"]["joules"] == 1264.567
    assert figures["workflows"][0]["full_joules"] == 1564.567 and figures["workflows"][0]["active_joules"] is None


def test_an_empty_ledger_and_none(tmp_path: Path) -> None:
    assert printed(tmp_path).startswith("No workflow has run yet")
    with pytest.raises(LedgerError, match="no ledger here yet"):
        show(LedgerReader(tmp_path / "none.sqlite"), False, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("joules", "quality", "text"),
    [
        (None, None, "-"),
        (0.0, "attributed", "0 J"),
        (0.000001, "measured", "1.00 µJ"),
        (0.0123456, "attributed", "12.3 mJ"),
        (9.999, "attributed", "10.0 J"),
        (999.9, "attributed", "1.00 kJ"),
        (123.0, "attributed", "123 J"),
        (123.0, "estimated", "≈ 120 J"),
        (7.77, "estimated", "≈ 7.8 J"),
        (1000.0, "estimated", "≈ 1.0 kJ"),
        (5e13, "emulated", "50000 GJ"),
    ],
)
def test_digits_follow_the_quality(joules: float | None, quality: str | None, text: str) -> None:
    assert joules_text(joules, quality) == text


def test_what_only_sums_are_kept_of_is_said(tmp_path: Path) -> None:
    lost = [DayEnergy("1970-01-01", "t", "search", "query", "e1", "gpu", "attributed", "", 2, 5_000_000, 0, 0)]
    requests = [DayRequests("1970-01-01", "t", "search", "query", "ok", "", 1200, 0, 0, 0, 0)]
    text = printed(tmp_path, books(Quality.MEASURED), Batch(dropped=Dropped(requests=requests, energy=lost)))
    assert "Of 1,200 requests (5.00 J) only sums are kept" in text
    assert "only sums" not in printed(tmp_path / "other", books(Quality.MEASURED))

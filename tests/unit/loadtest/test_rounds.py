"""The row that rounds make: medians, percentiles of all answers, ratios of each round to its own floor."""

from __future__ import annotations

import rounds


def make(ok: int, wall: float, worker: float, seconds: list[float] | None = None) -> rounds.Round:
    return rounds.Round(
        ok=ok,
        failures={},
        rows=ok,
        wall_seconds=wall,
        seconds=seconds or [0.01] * ok,
        cpu_us={"worker": worker, "signer": 100.0, "postgres": 50.0},
        generator_us=10.0,
    )


def test_a_row_holds_what_programs_read():
    row = rounds.write_row("kept connection", [make(10, 1.0, 850.0)], [500.0])
    assert list(row)[:9] == [
        "workload",
        "certificates",
        "rate",
        "p50_ms",
        "p99_ms",
        "cpu_us",
        "floor_us",
        "ratio",
        "peer",
    ]
    assert row["cpu_us"] == {"worker": 850.0, "signer": 100.0, "postgres": 50.0}
    assert (row["floor_us"], row["ratio"], row["rows"]) == (500.0, 2.0, 10)


def test_each_round_is_compared_with_the_floor_around_it():
    row = rounds.write_row(
        "w", [make(10, 1.0, 850.0), make(10, 2.0, 1850.0), make(10, 4.0, 850.0)], [500.0, 1000.0, 250.0]
    )
    assert row["ratio"] == 2.0
    assert row["ratio_range"] == [2.0, 4.0]
    assert row["rate"] == 5.0
    assert row["rate_range"] == [2.5, 10.0]
    assert row["certificates"] == 30


def test_where_nothing_is_issued_there_is_no_ratio():
    row = rounds.write_row("cacerts", [make(10, 1.0, 850.0)], [None])
    assert row["floor_us"] is None
    assert row["ratio"] is None


def test_percentiles_are_of_all_answers_and_by_nearest_rank():
    seconds = [number / 1000 for number in range(1, 1001)]
    assert rounds.percentile_ms(seconds, 0.5) == 500.0
    assert rounds.percentile_ms(seconds, 0.99) == 990.0
    assert rounds.percentile_ms(seconds, 0.999) == 999.0
    assert rounds.percentile_ms([0.007], 0.999) == 7.0
    assert rounds.percentile_ms([], 0.5) == 0.0


def test_a_peer_is_compared_round_by_round():
    ours = [make(20, 1.0, 850.0), make(20, 2.0, 1850.0)]
    theirs = [make(10, 1.0, 1850.0), make(10, 2.0, 3850.0)]
    peer = rounds.write_peer("cfssl", ours, theirs)
    assert (peer["name"], peer["rate"], peer["cpu_us"]) == ("cfssl", 7.5, 3000.0)
    assert peer["our_rate_over_its_rate"] == 2.0
    assert peer["its_cpu_over_our_cpu"] == 2.0

"""Queues: first come first served, nothing lost, Little's law; both implementations alike."""

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import simpy
from hypothesis import HealthCheck, given, settings

from sim.station import LawBroken, Process, Station, SteppedStation, Window

VISITS = st.lists(
    st.tuples(st.integers(0, 50).map(lambda n: n / 10), st.integers(1, 30).map(lambda n: n / 10)),
    min_size=1,
    max_size=40,
)


def run(
    kind: type[Station], visits: list[tuple[float, float]], servers: int = 1, windows: tuple[Window, ...] = ()
) -> Station:
    environment = simpy.Environment()
    station = kind(environment, "server", servers, windows)

    def visitor(at: float, service: float) -> Process:
        yield environment.timeout(at)
        yield from station.visit(service)

    for at, service in visits:
        environment.process(visitor(at, service))
    environment.run()
    return station


def test_the_second_visitor_waits_for_the_first() -> None:
    station = run(Station, [(0.0, 2.0), (1.0, 2.0)])
    assert list(station.departures) == [2.0, 4.0]
    assert station.report(4.0).utilisation == 1.0
    assert station.report(4.0).longest_wait == 1.0
    assert station.report(2.0).utilisation == 1.0, "what comes after the last task is up does not count"


def test_two_servers_serve_two_at_once() -> None:
    assert list(run(Station, [(0.0, 2.0), (0.0, 2.0), (0.0, 2.0)], servers=2).departures) == [2.0, 2.0, 4.0]


def test_a_stalled_server_starts_nothing_until_the_stall_ends() -> None:
    stall = Window(1.0, 5.0, float("inf"))
    assert list(run(Station, [(2.0, 1.0)], windows=(stall,)).departures) == [6.0]


def test_a_slow_server_takes_longer_while_it_is_slow() -> None:
    assert list(run(Station, [(0.0, 1.0), (9.0, 1.0)], windows=(Window(0.0, 5.0, 3.0),)).departures) == [3.0, 10.0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(VISITS, st.integers(1, 4))
def test_known_departures_and_played_ones_are_the_same(visits: list[tuple[float, float]], servers: int) -> None:
    quick, played = run(Station, visits, servers), run(SteppedStation, visits, servers)
    quick.check()
    played.check()
    assert list(quick.departures) == pytest.approx(list(played.departures))
    assert quick.report(100.0).busy == pytest.approx(sum(service for _, service in visits))


@pytest.fixture
def finished() -> Iterator[Station]:
    yield run(Station, [(0.0, 2.0), (1.0, 2.0), (1.5, 2.0)])


def test_a_server_that_idles_while_somebody_waits_is_found(finished: Station) -> None:
    finished.starts[1], finished.departures[1] = 2.5, 4.0
    with pytest.raises(LawBroken, match="idle while somebody waited"):
        finished.check()


def test_two_served_at_once_by_one_server_are_found(finished: Station) -> None:
    finished.starts[1] = 1.2
    with pytest.raises(LawBroken, match="more than 1 served at once"):
        finished.check()


def test_a_broken_account_is_found_by_littles_law(finished: Station) -> None:
    finished._area += 1.0
    with pytest.raises(LawBroken, match="Little's law"):
        finished.check()


def test_a_visit_that_never_ends_is_found() -> None:
    environment = simpy.Environment()
    station = Station(environment, "server")
    environment.process(station.visit(5.0))
    environment.run(until=1.0)
    with pytest.raises(LawBroken, match="never left"):
        station.check()

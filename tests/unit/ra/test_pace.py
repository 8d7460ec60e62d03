from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from gate_lab import Steps

from estd.errors import Code
from estd.ra import pace as pace_module
from estd.ra.limits import Limit, TurnedAway
from estd.ra.pace import Pace, Turnstile

CROWD, OTHER_CROWD, QUIET = 1, 2, 3


class Thread:
    """A thread's clocks: time that passes, and what of it was work."""

    def __init__(self, share: float = 0.5) -> None:
        self.now = 1000.0
        self.worked = 50.0
        self.pace = Pace(share, 0.05, lambda: self.now, lambda: self.worked)

    def work(self, seconds: float = 0.001) -> None:
        self.now += seconds
        self.worked += seconds

    def rest(self, seconds: float = 0.001) -> None:
        self.now += seconds

    def run(self, turns: int, busy_with_others: float = 0.0) -> float:
        """A crowd that wants every millisecond, while somebody else asks; the part of the time that it got."""
        taken, others = 0, 0.0
        for _ in range(turns):
            self.pace.notice(QUIET)
            others += busy_with_others
            if others >= 1:
                others -= 1
                self.work()
            elif self.pace.allows(CROWD):
                taken += 1
                self.work()
            else:
                self.rest()
        return taken / turns


# --- the pace ---------------------------------------------------------------------------------------------------------


def test_without_company_a_crowd_gets_everything() -> None:
    thread = Thread()
    for _ in range(5000):
        assert thread.pace.allows(CROWD)
        thread.work()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_in_company_a_crowd_gets_its_share(share: float) -> None:
    assert Thread(share).run(4000) == pytest.approx(share, abs=0.01)


def test_what_others_take_is_not_the_crowds() -> None:
    assert Thread(0.5).run(4000, busy_with_others=0.3) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("others", [0.5, 0.6, 1.0])
def test_a_crowd_is_never_shut_out_however_much_others_work(others: float) -> None:
    thread = Thread()
    thread.work(1)
    got, at, gaps = 0, thread.now, []
    for turn in range(4000):
        thread.pace.notice(QUIET)
        if turn % 10 < others * 10:
            thread.work()
        else:
            thread.rest()
        if thread.pace.allows(CROWD):
            got += 1
            gaps.append(thread.now - at)
            at = thread.now
            thread.work()
    assert got > 4000 * 0.018
    assert max(gaps) < 0.054


def test_company_is_over_a_second_after_its_last_step() -> None:
    thread = Thread()
    thread.pace.notice(QUIET)
    thread.work(0.99)
    assert not thread.pace.allows(CROWD)
    thread.work(0.02)
    assert thread.pace.allows(CROWD)
    thread.pace.notice(QUIET)
    thread.work()
    assert not thread.pace.allows(CROWD), "what it took alone is not forgotten"


def test_a_long_rest_is_worth_a_short_burst() -> None:
    thread = Thread()
    thread.rest(3600)
    thread.pace.notice(QUIET)
    burst = 0
    while thread.pace.allows(CROWD):
        thread.work()
        burst += 1
    # 5 ms of credit, of which each millisecond of work takes half a one.
    assert burst in (10, 11)


def test_long_work_is_paid_for_by_a_short_rest() -> None:
    thread = Thread()
    thread.work(3600)
    thread.pace.notice(QUIET)
    assert not thread.pace.allows(CROWD)
    # 20 ms of debt, of which each millisecond of rest pays half a one.
    for _ in range(39):
        thread.rest()
        assert not thread.pace.allows(CROWD)
    thread.rest(0.002)
    assert thread.pace.allows(CROWD)


def test_a_crowd_is_no_company_to_itself() -> None:
    thread = Thread()
    for _ in range(100):
        thread.pace.notice(CROWD)  # its first few, who were no crowd yet
        thread.work()
        assert thread.pace.allows(CROWD)
    assert not thread.pace.allows(OTHER_CROWD), "but it is to others"


def test_whoever_came_before_a_crowds_own_last_step_is_company_still() -> None:
    thread = Thread()
    thread.pace.notice(QUIET)
    thread.work(0.9)
    for _ in range(3):
        thread.pace.notice(CROWD)
        assert not thread.pace.allows(CROWD)
        thread.work(0.01)
    thread.work(0.1)
    thread.pace.notice(CROWD)
    for _ in range(3):
        assert thread.pace.allows(CROWD)
        thread.work(0.01)


def test_two_crowds_alone_are_not_held_back_and_beside_a_quiet_one_share_one_share() -> None:
    thread = Thread()
    for crowd in (CROWD, OTHER_CROWD) * 1000:
        assert thread.pace.allows(crowd)
        thread.work()
    taken = 0
    for _ in range(8000):
        thread.pace.notice(QUIET)
        for crowd in (CROWD, OTHER_CROWD):
            if thread.pace.allows(crowd):
                taken += 1
                thread.work()
        thread.rest(0.0001)
    # Half of the time for both together, less what the debt of the time before has cost.
    assert taken * 0.001 == pytest.approx((thread.now - 1002) / 2, rel=0.05)


def test_by_the_threads_own_clocks_work_counts_and_rest_does_not() -> None:
    pace = Pace(share=0.0, wait_seconds=60)
    assert pace.allows(CROWD)
    pace.notice(QUIET)
    for _ in range(1000):
        sum(range(100))
    assert not pace.allows(CROWD), "with no share at all any work is too much"


# --- the turnstile ----------------------------------------------------------------------------------------------------


async def enter(turnstile: Turnstile, ecosystem_id: int, in_hand: int, in_all: int) -> None:
    """As a request does."""
    if not turnstile.lets_in(ecosystem_id, in_hand, in_all):
        await turnstile.wait(ecosystem_id)


class Queue:
    """A turnstile, and in which order requests of crowds have passed it."""

    def __init__(self, left: int = 0) -> None:
        self.pace = Steps(left)
        self.turnstile = Turnstile(self.pace)
        self.passed: list[str] = []

    async def join(self, *names: str, ecosystem_id: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._enter(name, ecosystem_id)) for name in names]
        await asyncio.sleep(0)
        return tasks

    async def _enter(self, name: str, ecosystem_id: int) -> None:
        await enter(self.turnstile, ecosystem_id, 50, 100)
        self.passed.append(name)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(("in_hand", "in_all"), [(1, 1), (2, 2), (2, 1000), (3, 25), (12, 100)])
async def test_few_pass_at_once_and_are_noticed(in_hand: int, in_all: int) -> None:
    pace = Steps()
    async with asyncio.timeout(5):
        await enter(Turnstile(pace), QUIET, in_hand, in_all)
    assert (pace.noticed, pace.asked, pace.waiting) == ([QUIET], [], 0)


@pytest.mark.parametrize(("in_hand", "in_all"), [(3, 3), (3, 24), (13, 100)])
async def test_a_crowd_passes_where_its_pace_allows_and_is_not_noticed(in_hand: int, in_all: int) -> None:
    pace = Steps(left=1)
    async with asyncio.timeout(5):
        await enter(Turnstile(pace), CROWD, in_hand, in_all)
    assert (pace.noticed, pace.asked, pace.waiting) == ([], [CROWD], 0)


async def test_a_crowds_request_waits_for_its_step_and_is_counted() -> None:
    queue = Queue()
    await queue.join("a0", "a1", ecosystem_id=CROWD)
    await queue.until(lambda: len(queue.pace.asked) > 3)
    assert (queue.passed, queue.pace.waiting) == ([], 2)
    queue.pace.left = 1
    await queue.until(lambda: bool(queue.passed))
    assert (queue.passed, queue.pace.waiting) == (["a0"], 1)
    queue.pace.left = 1
    await queue.until(lambda: len(queue.passed) == 2)
    asked = len(queue.pace.asked)
    await asyncio.sleep(0.01)
    assert (queue.pace.waiting, len(queue.pace.asked)) == (0, asked), "nobody asks for nobody"


async def test_ecosystems_pass_in_turns_and_within_one_the_first_comes_first() -> None:
    queue = Queue()
    await queue.join("a0", "a1", "a2", ecosystem_id=CROWD)
    await queue.join("b0", "b1", ecosystem_id=OTHER_CROWD)
    queue.pace.asked.clear()
    queue.pace.left = 5
    await queue.until(lambda: len(queue.passed) == 5)
    assert queue.passed == ["a0", "b0", "a1", "b1", "a2"]
    assert queue.pace.asked == [CROWD, OTHER_CROWD, CROWD, OTHER_CROWD, CROWD]


async def test_one_passes_in_a_turn_of_the_loop() -> None:
    queue = Queue()
    await queue.join("a0", "a1", "a2", "a3", ecosystem_id=CROWD)
    queue.pace.left = 4
    most = 0
    async with asyncio.timeout(5):
        while len(queue.passed) < 4:
            before = len(queue.passed)
            await asyncio.sleep(0)
            most = max(most, len(queue.passed) - before)
    assert most == 1


async def test_nobody_of_a_crowd_overtakes_who_waits_and_few_do() -> None:
    queue = Queue()
    await queue.join("a0", ecosystem_id=CROWD)
    queue.pace.left = 1
    await queue.join("b0", ecosystem_id=OTHER_CROWD)
    assert (queue.passed, queue.pace.waiting) == ([], 2)
    async with asyncio.timeout(5):
        await enter(queue.turnstile, QUIET, 1, 100)
    assert (queue.passed, queue.pace.noticed) == ([], [QUIET])
    await queue.until(lambda: bool(queue.passed))
    assert (queue.passed, queue.pace.waiting) == (["a0"], 1)
    queue.pace.left = 1
    await queue.until(lambda: len(queue.passed) == 2)


async def test_who_gave_up_waiting_is_passed_over() -> None:
    queue = Queue()
    gone, *_ = await queue.join("a0", "a1", ecosystem_id=CROWD)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    queue.pace.left = 1
    await queue.until(lambda: bool(queue.passed))
    assert (queue.passed, queue.pace.waiting) == (["a1"], 0)
    await queue.join("a2", ecosystem_id=CROWD)
    queue.pace.left = 1
    await queue.until(lambda: len(queue.passed) == 2)


async def test_who_waits_too_long_is_turned_away_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setattr(pace_module, "_WAIT_AT_MOST_SECONDS", 0.05)
    first, second = await queue.join("a0", "a1", ecosystem_id=CROWD)
    async with asyncio.timeout(5):
        reasons = await asyncio.gather(first, second, return_exceptions=True)
    for reason in reasons:
        assert isinstance(reason, TurnedAway)
        assert (reason.limit, reason.code) == (Limit.DEADLINE, Code.OVERLOADED)
        assert reason.retry_after_seconds >= 1
    await queue.until(lambda: not queue.pace.waiting)
    asked = len(queue.pace.asked)
    await asyncio.sleep(0.01)
    assert (queue.passed, len(queue.pace.asked)) == ([], asked), "nobody asks for nobody"
    monkeypatch.undo()
    await queue.join("b0", ecosystem_id=OTHER_CROWD)
    queue.pace.left = 1
    await queue.until(lambda: queue.passed == ["b0"])

"""The pure decisions: what becomes of a quiet session, and how many instances an app should have."""

from hypothesis import given
from hypothesis import strategies as st

from dovecote.control.scaling import Load, Scale, desired
from dovecote.control.sessions.idle import Move, Quiet, next_move
from dovecote.model.states import SessionState

READY, FROZEN = SessionState.READY, SessionState.FROZEN


def quiet(seconds: float, *, busy: int = 0, commands: int = 0, expires_in: float | None = None) -> Quiet:
    return Quiet(quiet_for=seconds, busy=busy, commands=commands, expires_in=expires_in)


def move(state: SessionState, known: Quiet) -> Move:
    return next_move(state, known, quiet_after=10, idle_after=300)


def test_a_session_in_use_stays() -> None:
    assert move(READY, quiet(9)) is Move.STAY
    assert move(READY, quiet(1000, busy=1)) is Move.STAY


def test_a_running_command_keeps_it_awake() -> None:
    assert move(READY, quiet(1000, commands=1)) is Move.STAY


def test_quiet_freezes_and_idle_parks() -> None:
    assert move(READY, quiet(10)) is Move.FREEZE
    assert move(FROZEN, quiet(10)) is Move.STAY
    assert move(FROZEN, quiet(300)) is Move.PARK
    assert move(READY, quiet(300)) is Move.PARK


def test_expiry_ends_even_what_works() -> None:
    assert move(READY, quiet(0, busy=1, commands=1, expires_in=0)) is Move.END


SCALE = Scale(minimum=0, maximum=5, target_concurrency=10, idle_after=60)


def test_nobody_for_the_whole_idle_time_means_none() -> None:
    assert desired(SCALE, Load(in_flight=0, peak=0, idle_for=60)) == 0
    assert desired(SCALE, Load(in_flight=0, peak=0, idle_for=59)) == 1


def test_what_is_in_flight_counts_at_once_and_a_peak_for_its_window() -> None:
    assert desired(SCALE, Load(in_flight=11, peak=11, idle_for=0)) == 2
    assert desired(SCALE, Load(in_flight=1, peak=31, idle_for=0)) == 4


@given(
    st.integers(0, 5),
    st.integers(1, 50),
    st.integers(1, 200),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.floats(0, 1e6),
)
def test_the_bounds_hold_whatever_comes(
    minimum: int, extra: int, target: int, in_flight: int, peak: int, idle_for: float
) -> None:
    scale = Scale(minimum, minimum + extra, target, 60)
    wanted = desired(scale, Load(in_flight, peak, idle_for))
    assert scale.minimum <= wanted <= scale.maximum
    if in_flight:
        assert wanted >= 1

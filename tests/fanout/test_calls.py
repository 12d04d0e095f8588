from serve_app.fanout.calls import Calls


def test_calls_are_open_until_their_contexts_close() -> None:
    calls = Calls()
    with calls.new("abc", 60) as first, calls.new("abc", 60) as second:
        assert not calls.still_open().has_given_up(first)
        assert not calls.still_open().has_given_up(second)
    assert calls.still_open().has_given_up(first)
    assert calls.still_open().has_given_up(second)


def test_a_call_made_later_is_not_given_up_whichever_arrives_first() -> None:
    calls = Calls()
    said_before = calls.still_open()
    with calls.new("abc", 60) as call:
        assert not said_before.has_given_up(call)


def test_nobody_gives_up_the_calls_of_another() -> None:
    calls, others = Calls(), Calls()
    with calls.new("abc", 60):
        pass
    with others.new("abc", 60) as call:
        assert not calls.still_open().has_given_up(call)

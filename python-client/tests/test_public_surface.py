"""The public surface: what is in it, and that it says what it is."""

import inspect

import pytest

import ackstream


def test_the_public_surface_is_exactly_this() -> None:
    assert sorted(ackstream.__all__) == [
        "AckstreamError",
        "AnswersDiscarded",
        "Client",
        "Consumer",
        "Delivery",
        "Handler",
        "Message",
        "Misused",
        "PublishRefused",
        "Reject",
        "ServerUnreachable",
        "StreamEnded",
        "StreamEvent",
        "StreamLost",
        "StreamOpened",
        "StreamRefused",
        "Tls",
        "Token",
        "UnsupportedByServer",
        "connect",
        "read_token",
    ]


def test_every_other_name_in_the_package_is_a_private_module_but_for_testing() -> None:
    others = {name for name in vars(ackstream) if name not in [*ackstream.__all__, "testing"]}
    assert all(name.startswith("_") for name in others), others


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("Client", ["consume", "publish", "publish_many"]),
        ("Consumer", ["ended", "outstanding", "run", "stop"]),
        (
            "Delivery",
            ["ack", "attempt", "attributes", "epoch", "extend", "failures", "id", "interruptions", "leave", "nack",
             "payload", "published_at", "release", "retries_left", "subscription", "topic"],
        ),
    ],
)  # fmt: skip
def test_each_class_has_exactly_these_methods(name: str, methods: list[str]) -> None:
    public = sorted(member for member in vars(getattr(ackstream, name)) if not member.startswith("_"))
    assert public == methods


def test_everything_public_has_a_docstring() -> None:
    objects = [getattr(ackstream, name) for name in ackstream.__all__]
    classes = [each for each in objects if inspect.isclass(each)]
    members = [
        value
        for each in classes
        for name, value in vars(each).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    ]
    functions = [each for each in objects if inspect.isfunction(each)]
    assert [each for each in [*classes, *functions, *members] if not inspect.getdoc(each)] == []


def test_every_error_is_in_the_tree_and_says_whether_a_retry_helps() -> None:
    errors = [
        value
        for name in ackstream.__all__
        if inspect.isclass(value := getattr(ackstream, name)) and issubclass(value, Exception)
    ]
    tree = ackstream._errors.__doc__ or ""
    for error in errors:
        assert error.__name__ in tree
        if error is not ackstream.Reject:
            assert issubclass(error, ackstream.AckstreamError)
        if error not in (ackstream.AckstreamError, ackstream.Reject):
            [line] = [line for line in tree.splitlines() if f"── {error.__name__} " in line]
            assert "retry" in line


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"max_outstanding_messages": 0},
        {"max_outstanding_bytes": 0},
        {"max_batch_messages": 0},
        {"max_batch_messages": 2**32},
        {"max_extension": -1},
        {"max_extension": 3601},
    ],
)
def test_an_option_out_of_bounds_is_a_value_error_that_names_it(wrong: dict[str, int]) -> None:
    client = ackstream.connect()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        client.consume("demo", "demo", **wrong)  # type: ignore[arg-type]

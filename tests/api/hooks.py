"""Constraints of the API beyond JSON schema, and an existing call."""

import os

import schemathesis

MAX_ID_BYTES = 128
USER, CALL = os.environ["TEST_USER"], os.environ["TEST_CALL"]

asked = 0


@schemathesis.hook
def filter_query(context, query):
    """The document counts the characters of a user id, the server its bytes."""
    ids = [query.get("userId"), query.get("with"), *as_list(query.get("userIds"))] if query else []
    return all(len(str(one).encode("utf-8", "replace")) <= MAX_ID_BYTES or len(str(one)) > MAX_ID_BYTES for one in ids)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Every other good request is made by a user who has calls: else there would be nothing to see. One for
    statistics asks for a period that can be."""
    global asked
    if case.meta and case.meta.generation.mode.is_positive and is_no_period(case.query or {}):
        case.query["until"] = case.query["since"]
    if case.meta and case.meta.generation.mode.is_positive and "userId" in (case.query or {}):
        asked += 1
        if asked % 2:
            case.query["userId"] = USER
            if "id" in (case.path_parameters or {}):
                case.path_parameters["id"] = CALL


def is_no_period(query):
    """A schema looks at one parameter at a time: not at whether a period ends after it begins, nor at how many
    buckets it has."""
    try:
        period_ms = int(query["until"]) - int(query["since"])
    except (KeyError, TypeError, ValueError):
        return False
    bucket_ms = {"minute": 60_000, "hour": 3_600_000}.get(query.get("bucket"), 86_400_000)
    return period_ms < 0 or period_ms > 1_000 * bucket_ms


def as_list(value):
    return value if isinstance(value, list) else [value]

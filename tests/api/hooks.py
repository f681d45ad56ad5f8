"""What JSON schema cannot say about the API, and a call that is there."""

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
    """Every other good request is made by a user who has calls: else there would be nothing to see."""
    global asked
    if case.meta and case.meta.generation.mode.is_positive and "userId" in (case.query or {}):
        asked += 1
        if asked % 2:
            case.query["userId"] = USER
            if "id" in (case.path_parameters or {}):
                case.path_parameters["id"] = CALL


def as_list(value):
    return value if isinstance(value, list) else [value]

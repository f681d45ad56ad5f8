"""Schemathesis against the real server: requests made up from /openapi.json, good ones and bad ones, and
every answer held against what the document promises. `make test-api` runs it; SEED=… repeats a run."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import socketio

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))
from server import Server  # noqa: E402

DEADLINE_S = 120
ROWS_DEADLINE_S = 10


async def make_calls(url, user, count):
    """The ids of calls in this user's history. Their callee is offline: the quickest calls there are."""
    async with socketio.AsyncSimpleClient() as client:
        await client.connect(url, auth={"userId": user}, transports=["websocket"])
        call = {"toUserId": "nobody", "callType": "audio"}
        ids = [(await client.call("call:initiate", call))["error"]["callId"] for _ in range(count)]
    end = time.monotonic() + ROWS_DEADLINE_S
    while True:
        with urllib.request.urlopen(f"{url}/v1/calls?userId={user}") as response:
            if len(json.load(response)["calls"]) == count:
                return ids
        assert time.monotonic() < end, "the calls do not come into the history"
        await asyncio.sleep(0.05)


def main():
    server = Server()
    try:
        user = "anna"
        calls = asyncio.run(make_calls(server.url, user, 3))
        command = [
            str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(HERE / "schemathesis.toml"),
            "run", f"{server.url}/openapi.json", "--checks", "all",
        ]
        if os.environ.get("SEED"):
            command += ["--seed", os.environ["SEED"]]
        env = {**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "hooks.py"), "TEST_USER": user, "TEST_CALL": calls[0]}
        # In the server's folder, which is removed: schemathesis leaves files in its working folder.
        result = subprocess.run(command, env=env, cwd=server.folder.name, timeout=DEADLINE_S)
    finally:
        server.stop()
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())

"""A client from another family: python-socketio, over asyncio, on both transports."""

import asyncio
import sys
import unittest
import uuid
from pathlib import Path

import socketio

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from server import Server  # noqa: E402

DEADLINE = 10
OFFER = {"type": "offer", "sdp": "v=0\r\ns=python\r\n", "extra": {"grüße": [1, None, True]}}
ANSWER = {"type": "answer", "sdp": "v=0\r\ns=python\r\n"}


def someone(name):
    return f"{name}-{uuid.uuid4().hex[:8]}"


def candidate(number):
    return {"candidate": f"candidate:{number} 1 udp 1 127.0.0.1 5000 typ host", "sdpMid": "0", "sdpMLineIndex": 0}


class Client:
    """A python-socketio client that records what it is sent."""

    def __init__(self, **options):
        self.socket = socketio.AsyncClient(**options)
        self.came = []
        self.news = asyncio.Event()
        self.socket.on("*", self._record)
        self.socket.on("disconnect", lambda reason=None: self._record("disconnect", reason))

    def _record(self, event, payload=None):
        self.came.append((event, payload))
        self.news.set()

    async def emit(self, event, payload):
        await self.socket.emit(event, payload)

    async def ack(self, event, payload):
        return await self.socket.call(event, payload, timeout=DEADLINE)

    async def next(self, event):
        """The payload of the next such event."""
        try:
            return await asyncio.wait_for(self._find(event), DEADLINE)
        except asyncio.TimeoutError:
            raise AssertionError(f"no {event} came, but: {self.came}") from None

    async def _find(self, event):
        while True:
            self.news.clear()
            for index, (name, payload) in enumerate(self.came):
                if name == event:
                    del self.came[index]
                    return payload
            await self.news.wait()


class PythonClient(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.stop)

    async def join(self, user_id=None, device_id=None, transport="websocket", **options):
        client = Client(**options)
        client.user_id = user_id
        auth = {key: value for key, value in (("userId", user_id), ("deviceId", device_id)) if value}
        await client.socket.connect(self.server.url, auth=auth, transports=[transport], wait_timeout=DEADLINE)
        self.addAsyncCleanup(client.socket.shutdown)
        if user_id:
            self.assertTrue((await client.ack("call:sync", {}))["ok"])
        return client

    async def active_call(self, caller, callee):
        placed = await caller.ack("call:initiate", {"toUserId": callee.user_id, "callType": "video"})
        self.assertEqual((placed["ok"], placed["status"]), (True, "pending"), placed)
        self.assertEqual((await callee.next("call:incoming"))["callId"], placed["callId"])
        self.assertTrue((await caller.ack("call:offer", {"toUserId": callee.user_id, "offer": OFFER}))["ok"])
        self.assertEqual((await callee.next("call:offer"))["offer"], OFFER)
        self.assertTrue((await callee.ack("call:answer", {"toUserId": caller.user_id, "answer": ANSWER}))["ok"])
        self.assertEqual((await caller.next("call:answer"))["answer"], ANSWER)
        return placed["callId"]

    async def test_a_whole_call_on_each_transport(self):
        for transports in (("websocket", "websocket"), ("polling", "polling"), ("polling", "websocket")):
            with self.subTest(transports=transports):
                caller = await self.join(someone("alice"), transport=transports[0])
                callee = await self.join(someone("bob"), transport=transports[1])
                call_id = await self.active_call(caller, callee)
                for one, other in ((caller, callee), (callee, caller)):
                    for sent in (candidate(1), None, ""):
                        await one.emit("call:ice-candidate", {"toUserId": other.user_id, "candidate": sent})
                        self.assertEqual(
                            await other.next("call:ice-candidate"),
                            {"fromUserId": one.user_id, "candidate": sent, "callId": call_id},
                        )
                await callee.emit("call:end", {"toUserId": caller.user_id, "duration": 7})
                ended = await caller.next("call:ended")
                self.assertEqual((ended["reason"], ended["duration"], ended["callId"]), ("completed", 7, call_id))

    async def test_a_client_of_the_original_design(self):
        caller, callee = await self.join(), await self.join()
        caller.user_id, callee.user_id = someone("alice"), someone("bob")
        await callee.emit("user-connected", callee.user_id)
        await callee.ack("ice:servers", {})
        await caller.emit("user-connected", caller.user_id)
        await caller.emit("call:initiate", {"toUserId": callee.user_id, "callType": "audio", "callerInfo": {"name": "Alice"}})
        incoming = await callee.next("call:incoming")
        self.assertEqual(
            set(incoming), {"fromUserId", "callType", "callerInfo", "timestamp", "callId", "expiresAt"}
        )
        await callee.emit("call:reject", {"toUserId": caller.user_id, "reason": "Later"})
        rejected = await caller.next("call:rejected")
        self.assertEqual(set(rejected), {"fromUserId", "reason", "timestamp", "callId"})
        self.assertEqual(rejected["reason"], "Later")

    async def test_errors_in_acks_and_as_events(self):
        alice = await self.join(someone("alice"))
        request = {"toUserId": someone("nobody"), "callType": "audio"}
        refused = await alice.ack("call:initiate", request)
        self.assertFalse(refused["ok"])
        self.assertEqual(refused["error"]["type"], "RECIPIENT_OFFLINE")
        self.assertEqual(refused["error"]["message"], "User is currently offline")
        await alice.emit("call:initiate", request)
        error = await alice.next("call:error")
        self.assertEqual((error["type"], error["event"]), ("RECIPIENT_OFFLINE", "call:initiate"))
        for payload in (b"binary", {"toUserId": b"binary", "callType": "audio"}):
            refused = await alice.ack("call:initiate", payload)
            self.assertEqual(refused["error"]["type"], "INVALID_PAYLOAD")

    async def test_a_bad_auth_object(self):
        client = socketio.AsyncClient(reconnection=False)
        self.addAsyncCleanup(client.shutdown)
        said = []
        client.on("connect_error", said.append)
        with self.assertRaises(socketio.exceptions.ConnectionError):
            await client.connect(self.server.url, auth={"deviceId": "not a device id"}, wait_timeout=DEADLINE)
        self.assertIn("INVALID_PAYLOAD: ", str(said))

    async def test_a_burst_arrives_complete_and_in_order(self):
        caller, callee = await self.join(someone("alice")), await self.join(someone("bob"))
        await self.active_call(caller, callee)
        for number in range(500):
            await caller.emit("call:ice-candidate", {"toUserId": callee.user_id, "candidate": candidate(number)})
        heard = [(await callee.next("call:ice-candidate"))["candidate"] for _ in range(500)]
        self.assertEqual(heard, [candidate(number) for number in range(500)])

    async def test_a_lost_network_and_the_call_is_still_there(self):
        caller = await self.join(
            someone("alice"), device_id="laptop", reconnection_delay=0.1, reconnection_delay_max=0.2
        )
        callee = await self.join(someone("bob"))
        call_id = await self.active_call(caller, callee)
        await caller.socket.eio.ws.close()
        self.assertEqual((await callee.next("call:peer-reconnecting"))["callId"], call_id)
        await callee.emit("call:ice-candidate", {"toUserId": caller.user_id, "candidate": candidate(1)})
        self.assertEqual((await caller.next("call:resumed"))["callId"], call_id)
        self.assertEqual((await callee.next("call:peer-reconnected"))["callId"], call_id)
        self.assertEqual((await caller.next("call:ice-candidate"))["candidate"], candidate(1))

    async def test_leaving_on_purpose_ends_the_call(self):
        # Over polling, because over a websocket this library closes the connection before its last packet is sent.
        caller = await self.join(someone("alice"), device_id="laptop", transport="polling")
        callee = await self.join(someone("bob"))
        await self.active_call(caller, callee)
        await caller.socket.disconnect()
        self.assertEqual((await callee.next("call:ended"))["reason"], "connection_lost")


if __name__ == "__main__":
    unittest.main(verbosity=2)

"""Starts the real server for a Python test: its own process, port and folder (as server.mjs does)."""

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

BINARY = os.environ.get("SWITCHBOARD_BIN") or str(Path(__file__).parents[2] / "target/debug/switchboard")
READY_LINE = re.compile(r"switchboard is ready: open (http://\S+)/\n")


class Server:
    def __init__(self, *args):
        self.folder = tempfile.TemporaryDirectory(prefix="switchboard-test-")
        self.log_path = Path(self.folder.name) / "stderr.log"
        settings = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--database-url", f"sqlite://{self.folder.name}/switchboard.db"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("SWITCHBOARD_")}
        with open(self.log_path, "w") as log:
            # setpriv: the kernel ends the server if this test process dies without having stopped it.
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", BINARY, *settings, *args],
                cwd=self.folder.name, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )
        ready = READY_LINE.fullmatch(self.process.stdout.readline())
        if not ready:
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"the server did not start: {self.log_path.read_text()}")
        self.url = ready[1]

    def stop(self):
        """Asks the server to leave; it must leave cleanly and must not have panicked."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=20)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
        log = self.log_path.read_text()
        self.folder.cleanup()
        assert code == 0, f"the server left with code {code}:\n{log}"
        assert "panicked at" not in log, f"the server panicked:\n{log}"

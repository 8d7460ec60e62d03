from __future__ import annotations

import json
import subprocess
import sys

HARDENED = """
import ctypes, json, os, resource, signal
from estd.signer.process import harden
refused = harden()
print(json.dumps({
    "refused": refused,
    "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "umask": os.umask(0),
    "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
}))
"""

LOGGED = """
import logging
from estd.logs import set_up_logs
set_up_logs("signer-3", "info")
logging.getLogger("a").debug("not shown")
logging.getLogger("a").info("shown %d", 1, extra={"serial": "0a", "odd": object})
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("a").exception("failed\\nover two lines")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)


def test_the_process_cannot_be_dumped_or_interrupted():
    assert json.loads(run(HARDENED).stdout) == {
        "refused": [],
        "dumpable": 0,
        "core": [0, 0],
        "umask": 0o077,
        "interrupt": True,
    }


def test_each_log_line_is_one_object():
    lines = [json.loads(line) for line in run(LOGGED).stderr.splitlines()]
    assert [line["message"] for line in lines] == ["shown 1", "failed\nover two lines"]
    assert lines[0]["process"] == "signer-3"
    assert lines[0]["level"] == "info"
    assert lines[0]["serial"] == "0a"
    assert lines[0]["at"].endswith("+00:00")
    assert "ZeroDivisionError" in lines[1]["traceback"]

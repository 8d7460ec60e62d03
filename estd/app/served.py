"""A server as a child process: it says when it is ready, and stops when whoever started it is gone.

Started as ``python -m estd.app.served SETTINGS CONTROL_FD``. On the control channel it sends one message, either
``{"ready": true, "port": …, "ops_port": …}`` or ``{"failed": [[where, what, remedy] …]}``, and drains when it closes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from estd.app.control import Control
from estd.app.running import serve
from estd.app.supervisor import Supervisor
from estd.config import read_config
from estd.errors import Broken, Invalid, Unavailable


async def main() -> int:
    """Entry point of the process; its exit status."""
    settings = Path(sys.argv[1])
    control = await Control.open(socket.socket(fileno=int(sys.argv[2])))
    watching = asyncio.get_running_loop().create_task(_stop_with(control))

    async def say(supervisor: Supervisor) -> None:
        control.send({"ready": True, "port": supervisor.port, "ops_port": supervisor.ops_port})

    try:
        await serve(read_config(settings), settings, say)
    except Invalid as invalid:
        control.send({"failed": [[one.where, one.what, one.remedy] for one in invalid.problems]})
        return 1
    except (Unavailable, Broken) as reason:
        detail = reason.detail if isinstance(reason, Unavailable) else str(reason)
        control.send({"failed": [["the server", f"cannot start: {detail}", "Its log says more."]]})
        return 1
    finally:
        watching.cancel()
        control.close()
    return 0


async def _stop_with(control: Control) -> None:
    async for _ in control.messages():
        pass  # nothing is ever said on this end; its closing is the message
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

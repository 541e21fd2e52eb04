"""Whether the service of this container takes requests: `python -m kormed_edge.bundle_ready`.

What the image's HEALTHCHECK and the installer run. http.client, because urllib would ask a proxy
that the engine put into the environment; nothing else, because it runs every half minute.
"""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

SECONDS = 2.0


def is_ready(port: int) -> bool:
    """Whether /readyz on this machine's own address says 200, in the clear or with TLS."""
    # Nobody is believed here, so that nobody's certificate need be.
    trusting = ssl._create_unverified_context()
    return any(
        _answers(connection)
        for connection in (
            HTTPConnection("127.0.0.1", port, timeout=SECONDS),
            HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=trusting),
        )
    )


def _answers(connection: HTTPConnection) -> bool:
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    """Exit with 0 if it is ready, else with 1; KORMED_PORT is the port, 8080 unless set."""
    sys.exit(not is_ready(int(os.environ.get("KORMED_PORT") or 8080)))


if __name__ == "__main__":
    main()

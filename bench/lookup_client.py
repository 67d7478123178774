"""A client of the look-up benchmark: `connections` kept connections, `count` look-ups on each, a fresh credential for each.

Says when it is ready, starts at a line on standard input, and prints the seconds that each look-up took, as JSON. Credentials
are made beforehand: what is measured is the gateway.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

from runtime import munge


def look_up(host: str, port: int, requests: list[bytes], start: threading.Event, waits: list[float]) -> None:
    connection = socket.create_connection((host, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    start.wait()
    for request in requests:
        began = time.perf_counter()
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(head.decode() + body.decode())
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        waits.append(time.perf_counter() - began)


def main() -> None:
    host, port, munge_socket, system, connections, count = sys.argv[1:]
    start = threading.Event()
    waits: list[float] = []
    threads = []
    for share in range(int(connections)):
        requests = []
        for number in range(int(count)):
            tag = f"group{(share + number) % 97}%2Fimage{_image(share + number)}%3A1"
            requests.append(
                f"GET /api/lookup/{system}/docker/{tag}/ HTTP/1.1\r\nHost: gateway\r\n"
                f"authentication: {munge.encode(b'', munge_socket)}\r\n\r\n".encode()
            )
        threads.append(threading.Thread(target=look_up, args=(host, int(port), requests, start, waits)))
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.readline()
    start.set()
    for thread in threads:
        thread.join()
    print(json.dumps(waits), flush=True)


def _image(number: int) -> int:
    """An image number whose group is number % 97, below 1000."""
    return number % 97 + 97 * (number // 97 % 10)


if __name__ == "__main__":
    main()

"""Pulls through real proxies, chosen by the environment as chapter 1.4 of the documentation says: HTTP, CONNECT, SOCKS.

Each proxy writes down what it was asked for, so a test sees whether the registry was reached through it or past it.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from catalog.conversion_options import ConversionOptions
from catalog.failure import PullFailed
from catalog.limits import Limits
from tests.catalog.registry_fixture import Built, LiveRegistry, Puller, build, file, gz, running_registry, tar
from tests.requires import need, requires

pytestmark = requires("docker-registry", "tar2sqfs")
IMAGE = build(gz(tar(file("f", random.Random(2).randbytes(200_000)))))
QUICK = ConversionOptions(limits=Limits(attempts=2, backoff=0.001, timeout=5.0))
Ports = Callable[[], int]


class Proxy:
    """A running proxy; `lines` is what it said so far, and `seen` waits for it to say a word."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.lines: list[str] = []
        self._process = process
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._said:
                self.lines.append(line)
                self._said.notify_all()

    def seen(self, word: str) -> bool:
        with self._said:
            return self._said.wait_for(lambda: any(word in line for line in self.lines), timeout=10)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()


@contextmanager
def running(command: list[str], url: str) -> Iterator[Proxy]:
    """Start a proxy and wait until it takes connections."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    proxy = Proxy(url, process)
    try:
        port = urlsplit(url).port
        listening = ["timeout", "10", "bash", "-c", f"until exec 3<>/dev/tcp/127.0.0.1/{port}; do :; done 2>/dev/null"]
        subprocess.run(listening, check=True, capture_output=True)
        yield proxy
    finally:
        proxy.end()


@pytest.fixture
def http_proxy(tmp_path: Path, free_port: Ports) -> Iterator[Proxy]:
    """tinyproxy, which also tunnels https by CONNECT."""
    need("tinyproxy")
    port, configuration = free_port(), tmp_path / "tinyproxy.conf"
    configuration.write_text(
        f"Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 30\nLogLevel Connect\nMaxClients 50\n"
    )
    with running(["tinyproxy", "-d", "-c", str(configuration)], f"http://127.0.0.1:{port}") as proxy:
        yield proxy


@pytest.fixture
def socks_proxy(free_port: Ports) -> Iterator[Proxy]:
    need("microsocks")
    port = free_port()
    with running(["microsocks", "-i", "127.0.0.1", "-p", str(port)], f"socks5h://127.0.0.1:{port}") as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def image(live_registry: LiveRegistry) -> str:
    """An image in the plain registry."""
    live_registry.push("proxied", "1", IMAGE)
    return "proxied:1"


def test_http_proxy_is_used_for_a_registry_without_tls(
    tmp_path: Path, live_registry: LiveRegistry, http_proxy: Proxy, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", http_proxy.url)
    assert Puller(tmp_path, live_registry.url, QUICK).pull(image).id == digest(IMAGE)
    assert http_proxy.seen(f"GET http://{live_registry.address}/v2/proxied/manifests/1")


def test_no_proxy_goes_past_it(
    tmp_path: Path, live_registry: LiveRegistry, http_proxy: Proxy, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", http_proxy.url)
    monkeypatch.setenv("no_proxy", "registry.example.org,127.0.0.1")
    assert Puller(tmp_path, live_registry.url, QUICK).pull(image).id == digest(IMAGE)
    assert not any("proxied" in line for line in http_proxy.lines)


def test_all_proxy_takes_pulls_through_socks(
    tmp_path: Path, live_registry: LiveRegistry, socks_proxy: Proxy, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", socks_proxy.url)
    assert Puller(tmp_path, live_registry.url, QUICK).pull(image).id == digest(IMAGE)
    assert socks_proxy.seen(f"connected to 127.0.0.1:{urlsplit(live_registry.url).port}")


def test_a_registrys_own_proxy_in_the_configuration_goes_before_the_environment(
    tmp_path: Path, live_registry: LiveRegistry, socks_proxy: Proxy, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    puller = Puller(tmp_path, live_registry.url, QUICK, location={"proxy": socks_proxy.url})
    assert puller.pull(image).id == digest(IMAGE)
    assert socks_proxy.seen("connected to 127.0.0.1:")


def test_a_proxy_that_is_away_fails_the_pull_in_one_sentence(
    tmp_path: Path, live_registry: LiveRegistry, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with pytest.raises(PullFailed, match="registry testing cannot be reached: Connection refused"):
        Puller(tmp_path, live_registry.url, QUICK).pull(image)


@requires("openssl", "tinyproxy")
def test_https_proxy_tunnels_and_the_registrys_certificate_is_still_checked(
    tmp_path: Path, http_proxy: Proxy, free_port: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", http_proxy.url)
    with registry_with_tls(tmp_path / "registry", free_port(), free_port(), monkeypatch) as (url, certificate):
        trusting = Puller(tmp_path / "one", url, QUICK, location={"sslcacert": certificate})
        assert trusting.pull("proxied:1").id == digest(IMAGE)
        assert http_proxy.seen(f"CONNECT {urlsplit(url).netloc}")
        with pytest.raises(PullFailed, match=r"registry testing cannot be reached: .*certificate"):
            Puller(tmp_path / "two", url, QUICK).pull("proxied:1")


@contextmanager
def registry_with_tls(
    root: Path, plain: int, secure: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Path]]:
    """A registry behind TLS that holds IMAGE as proxied:1, and its certificate."""
    running_one = contextmanager(running_registry)
    with running_one(root, plain) as filled:
        filled.push("proxied", "1", IMAGE)
    certificate, key = root / "registry.crt", root / "registry.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"]
    names = ["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("REGISTRY_HTTP_TLS_CERTIFICATE", str(certificate))
    monkeypatch.setenv("REGISTRY_HTTP_TLS_KEY", str(key))
    shutil.rmtree(root / "log", ignore_errors=True)
    with running_one(root, secure) as live:
        yield f"https://{live.address}", certificate


def digest(image: Built) -> str:
    """The id that a pull of `image` gives."""
    return hashlib.sha256(image.manifest).hexdigest()

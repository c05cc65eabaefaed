"""What nodes say of themselves: their Prometheus endpoints, read."""

from __future__ import annotations

import http.client
import math
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kvwire.cli.streams import printable

DEFAULT_URL = "http://127.0.0.1:9464/metrics"
TIMEOUT_S = 2.0
"""For a whole answer."""
MOST_BYTES = 64 << 20
"""Of one answer: about ten times what a node exports at most."""

Labels = frozenset[tuple[str, str]]

# The nodes themselves are asked, whatever proxy the environment has for the rest of the world.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class LinkView:
    """One link, as its node exports it."""

    link: str
    peer: str
    values: dict[tuple[str, Labels], float] = field(default_factory=dict)
    """By the name without "kvwire_" and the labels besides link and peer."""

    def get(self, name: str, **labels: str) -> float:
        """NaN where the node does not say."""
        return self.values.get((name, frozenset(labels.items())), math.nan)

    def label(self, name: str, label: str, **labels: str) -> str:
        """The value of a label of a metric that only tells by its labels; empty where the node does not say."""
        for told, having in self.values:
            if told == name and frozenset(labels.items()) <= having:
                return dict(having).get(label, "")
        return ""

    @property
    def lanes(self) -> list[str]:
        """Numbers of its lanes, in order."""
        found = {text for name, labels in self.values if name == "lane_info" for key, text in labels if key == "lane"}
        return sorted(found, key=lambda text: (len(text), text))


@dataclass(frozen=True, slots=True)
class NodeView:
    """What one endpoint said, or why it said nothing."""

    url: str
    links: list[LinkView] = field(default_factory=list)
    left_out: float = 0
    error: str = ""


def parse_url(text: str) -> str:
    """An endpoint's URL; "host", "host:port" and a URL without a path are enough. ValueError otherwise."""
    parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text!r:.80} is no URL; expected one such as {DEFAULT_URL}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{text!r:.80} has no valid port; expected a URL such as {DEFAULT_URL}") from None
    host = parts.netloc if port is not None or "://" in text else f"{parts.netloc.rstrip(':')}:9464"
    return parts._replace(netloc=host, path=parts.path.rstrip("/") or "/metrics").geturl()


class Endpoint:
    """Where a node exports its metrics, asked by a thread that nobody has to wait for: `urlopen` bounds each read, and
    one that drips could make it last for hours."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._asked: Future[NodeView] | None = None

    def ask(self) -> None:
        """Unless it has an answer to give yet."""
        if self._asked is None or self._asked.done():
            self._asked = Future()
            threading.Thread(target=self._run, args=(self._asked,), daemon=True).start()

    def _run(self, asked: Future[NodeView]) -> None:
        try:
            asked.set_result(_look(self._url))
        except BaseException as error:
            asked.set_exception(error)

    def view(self, until_s: float) -> NodeView:
        """What it has said by then."""
        assert self._asked is not None
        try:
            return self._asked.result(max(0.0, until_s - time.monotonic()))
        except TimeoutError as error:
            return NodeView(self._url, error=_reason(error))


def look(endpoints: Sequence[Endpoint]) -> list[NodeView]:
    """Ask all of them at once."""
    for endpoint in endpoints:
        endpoint.ask()
    until_s = time.monotonic() + TIMEOUT_S
    return [endpoint.view(until_s) for endpoint in endpoints]


def _look(url: str) -> NodeView:
    try:
        with _opener.open(url, timeout=TIMEOUT_S) as answer:
            body = answer.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        return NodeView(url, error=f"answers {error.code} {error.reason}")
    except urllib.error.URLError as error:
        return NodeView(url, error=_reason(error.reason))
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a name that cannot be one
        return NodeView(url, error=_reason(error))
    if len(body) > MOST_BYTES:
        return NodeView(url, error=f"says more than {MOST_BYTES >> 20} MiB")
    try:
        return parse(url, body.decode())
    except ValueError:
        return NodeView(url, error="says something that is not Prometheus's text format")


def parse(url: str, text: str) -> NodeView:
    """ValueError for what is no exposition."""
    links: dict[tuple[str, str], LinkView] = {}
    node: dict[str, float] = defaultdict(float)
    for sample in _samples(text):
        name = sample.name.removeprefix("kvwire_")
        if name == sample.name:
            continue
        labels = dict(sample.labels)
        if "link" not in labels:
            node[name] = sample.value
            continue
        key = printable(labels.pop("link")), printable(labels.pop("peer", ""))
        view = links.setdefault(key, LinkView(*key))
        view.values[name, frozenset((it, printable(value)) for it, value in labels.items())] = sample.value
    if "links" not in node:
        return NodeView(url, error="has no metrics of kvwire's")
    return NodeView(url, list(links.values()), node["links_left_out"])


def _samples(text: str) -> Iterator[Sample]:
    try:
        for family in text_string_to_metric_families(text):
            yield from family.samples
    except ValueError:
        raise
    except Exception as error:  # the parser indexes what may not be there: of "# HELP" with nothing after it, for one
        raise ValueError(f"no exposition: {type(error).__name__}: {error}") from None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"does not answer within {TIMEOUT_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    return str(getattr(error, "strerror", None) or error or "hangs up")

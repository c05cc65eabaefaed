"""TLS 1.3 over bytes: no socket and no event loop. asyncio's own takes 256 KiB for each connection before anybody is
authenticated; here, what a stranger has sent is bounded, and is not kept once OpenSSL has read it.
"""

from __future__ import annotations

import os
import ssl

from kvwire.errors import AuthenticationFailed, Closed, LinkLost
from kvwire.security.identity import ALPN

HANDSHAKE_BYTES = 64 * 1024
"""Most bytes that a peer may send before it is authenticated."""
READ_BYTES = 64 * 1024


class Tls:
    """One side of a TLS connection. `handshake` until it is true; then `receive` and `send`.

    `own`: the certificate that `context` shows, in DER. `peer`: the other side's, after the handshake.
    """

    def __init__(self, context: ssl.SSLContext, own: bytes, *, server: bool) -> None:
        self.own, self.peer = own, b""
        self._pid = os.getpid()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._heard = 0

    def handshake(self, data: bytes) -> bool:
        """What the peer has sent; true once both sides are authenticated. `pending` has what is to be sent.

        AuthenticationFailed says what is wrong with the peer's certificate, or that it speaks no such TLS. Then nothing
        is to be sent any more: an alert would tell a stranger why.
        """
        self._heard += len(data)
        if self._heard > HANDSHAKE_BYTES:
            raise AuthenticationFailed(f"a TLS handshake of more than {HANDSHAKE_BYTES} bytes")
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            raise AuthenticationFailed(f"the peer's certificate: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise AuthenticationFailed(f"no TLS: {error.reason or error}") from None
        if self._tls.version() != "TLSv1.3" or self._tls.selected_alpn_protocol() != ALPN:
            chosen = self._tls.version(), self._tls.selected_alpn_protocol()
            raise AuthenticationFailed(f"TLS was agreed on as {chosen}; expected TLSv1.3 and {ALPN}")
        self.peer = self._tls.getpeercert(binary_form=True) or b""
        if not self.peer:
            raise AuthenticationFailed("the peer has shown no certificate")
        return True

    def pending(self) -> bytes:
        """What is to be sent; it is forgotten here."""
        return self._outgoing.read()

    def receive(self, data: bytes) -> bytes:
        """What the peer has said in these bytes. LinkLost where they are not what it sent, or it says that it ends."""
        self._incoming.write(data)
        said = bytearray()
        try:
            while True:
                part = self._tls.read(READ_BYTES)
                if not part:  # OpenSSL reads nothing any more, and what still comes would only be kept
                    raise LinkLost("the peer closed the connection without a good-bye")
                said += part
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise LinkLost(f"the control connection was damaged: {error.reason or error}") from None
        return bytes(said)

    def send(self, data: bytes) -> bytes:
        """The bytes that say this to the peer. Closed in a child after a fork: keys and numbers are the parent's."""
        if os.getpid() != self._pid:
            raise Closed("this connection was made before the fork, and is the parent's")
        if data:
            self._tls.write(data)
        return self.pending()

from kvwire._ext.libcrypto import Libcrypto

class Cipher:
    """AES-256-GCM, as an engine uses it."""

    @property
    def name(self) -> str:
        """Who does it, and its version: "OpenSSL 3.0.19 (python)", "cryptography 50.0.2"."""

    @property
    def native(self) -> bool:
        """Whether it works without the GIL."""

def of_libcrypto(library: Libcrypto) -> Cipher:
    """AES-256-GCM by this libcrypto; OSError where it has none."""

def of_package() -> Cipher:
    """AES-256-GCM by the `cryptography` package: each frame takes the GIL, and no key can be wiped."""

def find() -> Cipher:
    """The cipher of this process, looked for once: that of `libcrypto.find`, or the package's, with a RuntimeWarning.

    ConfigError where KVWIRE_LIBCRYPTO names a libcrypto that cannot be used, or the one that was found has no
    AES-256-GCM.
    """

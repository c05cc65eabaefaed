"""The one place where kvwire's version stands: packaging, HELLO and `kvwire --version` read it here."""

__version__ = "0.1.0"

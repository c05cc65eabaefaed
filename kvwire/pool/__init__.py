"""Where KV lies: registered memory (`Pages`), which of it holds which blocks (`Slots`), and leases on it.

Read `arrays` (what memory a caller handed in), `layout` (how one block lies in it), `pages`, then `leases` and
`overlap`.
"""

from kvwire.pool.leases import Lease
from kvwire.pool.overlap import check_disjoint
from kvwire.pool.pages import Pages, Slots

__all__ = ["Lease", "Pages", "Slots", "check_disjoint"]

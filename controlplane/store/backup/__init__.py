"""Backup and restore of a region's database: logical, of one instant, encrypted, read and written as a stream.

- `contents` says what is kept, and what is left out and why.
- `snapshot` picks the instant and reads each collection as it was then, while writers go on.
- `part` is the file format: chunks of BSON, compressed, sealed by AES-256-GCM, so that what was cut, changed, moved or swapped is refused.
- `manifest` says what the parts hold: counts, digests, the accepted messages, where each log of the ledger stood; authenticated by the same key.
- `archive` is the directory of both: it has its name only once it is whole and on the disk.
- `create`, `verify`, `restore` are what one does with it.

The key is made from the region's secret key (HKDF-SHA256), which a restored region needs anyway.
"""

from controlplane.store.backup.archive import Archive, ArchiveError, open_archive
from controlplane.store.backup.contents import KEPT, LEFT_OUT
from controlplane.store.backup.create import create
from controlplane.store.backup.manifest import Accepted, LogAt, Manifest
from controlplane.store.backup.restore import clear, restore
from controlplane.store.backup.tally import Tally
from controlplane.store.backup.verify import check_files, verify

__all__ = [
    "KEPT",
    "LEFT_OUT",
    "Accepted",
    "Archive",
    "ArchiveError",
    "LogAt",
    "Manifest",
    "Tally",
    "check_files",
    "clear",
    "create",
    "open_archive",
    "restore",
    "verify",
]

"""Bundles: one file that carries models across an air gap.

    bundle.json          format, versions, and of each model its manifest, its source and its files with their SHA-256s
    bundle.json.sig      who vouches for bundle.json, and so for everything; may be missing
    blobs/<sha256> …     the files, each once

The file is a plain tar, so that `tar tf` shows it, and nothing in it can unfold to more than it is. archive reads and
writes the tar, index says what bundle.json may say, tree makes one tree of a model that lies in several places;
exporting and importing do the work.
"""

from hub.library.bundles.exporting import ExportResult, export
from hub.library.bundles.importing import ImportResult, import_bundle
from hub.library.bundles.reading import Bundle, read_bundle

__all__ = ["Bundle", "ExportResult", "ImportResult", "export", "import_bundle", "read_bundle"]

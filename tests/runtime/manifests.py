"""Manifests that say something else, with the digest of that: what a rewriter could make, and no damage does."""

import json

from edgekd.runtime.manifest import MANIFEST, manifest_text


def edit_manifest(folder, edit):
    """Let ``edit`` change the manifest's content, and write it with a digest that fits."""
    path = folder / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["digest"]
    edit(content)
    path.write_text(manifest_text(content), encoding="utf-8")

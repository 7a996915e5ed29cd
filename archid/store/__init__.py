"""Content on disk: chunks, trees, bundles and the documents that describe them."""

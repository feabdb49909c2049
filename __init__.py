"""uvd: raw visual data in, unified vision dataset and large vision model out.

The packages: `sequences` (vocabulary), `renderers` (annotation to image), `sources` (raw inputs to examples),
`manifests` (what is on disk), `tokenize` (VQGAN), `pipeline` (Ray runner and CLI), `trainer` (transformer).
"""

__version__ = "0.1.0"

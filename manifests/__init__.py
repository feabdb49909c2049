"""What is on disk: shard tars, Parquet manifests, rejects, commit, verification, statistics, contact sheets."""

from uvd.manifests.dataset import ConfigChangedError, Dataset, DatasetError, Shard
from uvd.manifests.image_shard import ImageShardWriter, StoredSequence, read_image_shard, read_sequence
from uvd.manifests.token_shard import TokenShardWriter, iter_token_shard, read_tokens

__all__ = [
    "ConfigChangedError",
    "Dataset",
    "DatasetError",
    "ImageShardWriter",
    "Shard",
    "StoredSequence",
    "TokenShardWriter",
    "iter_token_shard",
    "read_image_shard",
    "read_sequence",
    "read_tokens",
]

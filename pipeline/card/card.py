"""Makes a dataset card: statistics, charts, pictures, refused inputs, settings and how to load it, in one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from uvd import __version__
from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.stats import flatten, query, statistics
from uvd.manifests.survey import Survey, survey
from uvd.pipeline.card.charts import Chart, bars, codebook, present
from uvd.pipeline.card.gallery import draw_gallery

MAX_BYTES = 10_000_000
REJECTS_SHOWN = 200
REJECTS_OF_A_REASON = 20
TEXT_SHOWN = 300
TITLES = {
    "families": "Kinds of data, beside UVDv1",
    "sources": "Sources",
    "datasets": "Datasets",
    "layouts": "Layouts",
    "roles": "Roles",
    "splits": "Splits",
    "accounting": "Planned inputs = used + rejected",
    "rejects": "Rejected inputs by reason",
    "reject_hosts": "Hosts with most rejected inputs",
    "tokens": "Tokens",
    "codebook": "Codebook use",
    "duplicates": "Duplicates marked",
    "costs": "Throughput by stage",
}
FACETS = ("source", "dataset", "layout", "split", "role")


def dataset_card(dataset: Dataset, *, seed: int = 0, counted: Survey | None = None) -> str:
    """The page: under 10 MB whatever the dataset's size; equal manifests, seed and version give an equal page.

    Args:
        seed: of the pictures that are shown.
        counted: a survey of this dataset, if there is one already.

    Raises:
        DatasetError: if a manifest is none.
    """
    counted = counted or survey(dataset)
    content = statistics(dataset, counted=counted)
    gallery = draw_gallery(dataset, seed)
    strips = [asdict(strip) for strip in gallery.strips]
    for strip in strips:
        strip["link"] = web_link(strip["origin"])
    tables = {name: rows for name, rows in flatten(content) if name in TITLES}
    environment = Environment(
        loader=PackageLoader("uvd.pipeline.card"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = show_number
    page = environment.get_template("card.html").render(
        name=dataset.uri.rstrip("/").rpartition("/")[2],
        uri=dataset.uri,
        version=__version__,
        facts=_facts(content),
        charts=_charts(content, counted),
        strips=strips,
        facets={facet: _values(strips, facet) for facet in FACETS},
        unreadable=gallery.unreadable,
        seed=seed,
        tables=tables,
        titles=TITLES,
        rejects=_rejects(dataset),
        settings=[
            (f"{section}/{name}", json.dumps(entry, indent=1, sort_keys=True, ensure_ascii=False))
            for section in ("sequences", "tokens")
            for name, entry in sorted(dataset.info()[section].items())
        ],
        code=loading_code(dataset),
    )
    assert len(page.encode()) < MAX_BYTES, "the numbers of strips and rejects bound the page"
    return page


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    sources, tokens = content["sources"], content["tokens"]
    used = [row for row in tokens if row["tokenizer"] == content["tokenizer"] and row["source"] != "(all)"]
    inputs = sum(row["inputs"] for row in content["accounting"])
    rejected = sum(row["rejected"] - row["retried"] for row in content["accounting"])
    facts = [
        ("sequences", sum(row["sequences"] for row in sources)),
        ("images", sum(row["images"] for row in sources)),
        ("tokens", sum(row["tokens"] for row in used)),
        ("bytes of images", sum(row["bytes"] for row in sources)),
        ("bytes of tokens", sum(row["tar_bytes"] for row in used)),
        ("inputs", inputs),
        ("of them rejected", rejected),
        ("shards", content["shards"]["all"]),
    ]
    return [*((name, show_number(value)) for name, value in facts), ("tokenizer", content["tokenizer"] or "none yet")]


def _charts(content: Mapping[str, Any], counted: Survey) -> list[Chart]:
    def column(table: str, key: str, value: str) -> dict[str, float]:
        added: dict[str, float] = {}
        for row in content.get(table, ()):
            added[str(row[key])] = added.get(str(row[key]), 0.0) + float(row[value])
        return dict(sorted(added.items(), key=lambda item: -item[1]))

    families = column("families", "family", "share")
    charts = [
        bars(
            "families",
            "Kinds of data beside UVDv1",
            families,
            beside=column("families", "family", "uvdv1_share"),
            unit="percent of images",
        ),
        bars("sources", "Images by source", column("sources", "source", "images"), unit="images"),
        bars("layouts", "Sequences by layout", column("layouts", "layout", "sequences"), unit="sequences"),
        bars("roles", "Images by role", column("roles", "role", "images"), unit="images"),
        bars("rejects", "Rejected inputs by reason", column("rejects", "reason", "inputs"), unit="inputs"),
        codebook("codebook", "How often each code occurs", _histogram(counted, content["tokenizer"])),
    ]
    return present(charts)


def _histogram(counted: Survey, tokenizer: str | None) -> NDArray[np.int64]:
    folders = [folder for name, folder in counted.folders.items() if name.startswith(f"tokens/{tokenizer}/")]
    return np.sum([folder.histogram for folder in folders], axis=0) if folders else np.zeros(1, np.int64)


def _values(strips: list[dict[str, Any]], facet: str) -> list[str]:
    if facet == "role":
        return sorted({role for strip in strips for role in strip["roles"]})
    return sorted({strip[facet] for strip in strips})


def _rejects(dataset: Dataset) -> list[dict[str, Any]]:
    """Some of each reason, in a fixed order."""
    rows = query(
        dataset,
        "select folder, reason, origin, detail from rejects "
        f"qualify row_number() over (partition by reason order by folder, input) <= {REJECTS_OF_A_REASON} "
        f"order by reason, folder, input limit {REJECTS_SHOWN}",
    ).to_pylist()
    return [
        {
            **row,
            "origin": row["origin"][:TEXT_SHOWN],
            "detail": (row["detail"] or "")[:TEXT_SHOWN],
            "link": web_link(row["origin"]),
        }
        for row in rows
    ]


def web_link(origin: str) -> str | None:
    """The origin if it is an http or https URL, to be linked; None for anything else, such as `javascript:`."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return origin if parts.scheme in ("http", "https") and parts.hostname and len(origin) <= 2000 else None


def show_number(value: Any) -> str:
    """Numbers for people; what is none stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    for power, suffix in ((12, " T"), (9, " G"), (6, " M")):
        if abs(value) >= 10 ** (power + 1):
            return f"{value / 10**power:,.2f}{suffix}"
    return f"{value:,.2f}" if isinstance(value, float) and value != int(value) else f"{int(value):,}"


def loading_code(dataset: Dataset) -> list[tuple[str, str]]:
    """(what it shows, code that runs as it stands where the dataset is), of the first shard that there is."""
    home = (dataset.base or dataset).uri.rstrip("/")
    blocks = []
    if (images := _first_shard(dataset, [f"sequences/{source}" for source in dataset.sources()])) is not None:
        blocks.append(
            (
                "Pictures, with webdataset",
                f"""import webdataset as wds

for sample in wds.WebDataset("{home}/{images.tar}", shardshuffle=False).decode("rgb8"):
    pictures = [sample[name] for name in sorted(sample) if name.endswith(("jpg", "png"))]  # (256, 256, 3) each
    print(sample["__key__"], sample["json"]["layout"], len(pictures))
    break""",
            )
        )
    folders = [f"tokens/{tokenizer}/{source}" for tokenizer, source in dataset.token_folders()]
    if (tokens := _first_shard(dataset, folders)) is not None:
        blocks += [
            (
                "Tokens, with webdataset",
                f"""import webdataset as wds

for sample in wds.WebDataset("{home}/{tokens.tar}", shardshuffle=False).decode():
    ids, offsets = sample["tokens.npy"], sample["json"]["offsets"]
    sequences = [ids[a:b] for a, b in zip(offsets, offsets[1:])]  # each [BOS] 256·n codes [EOS], uint16
    print(sample["__key__"], len(sequences), "sequences of", len(ids), "tokens")
    break""",
            ),
            (
                "Batches to train on, with uvd",
                f"""from uvd.sequences import Seeds
from uvd.trainer.data import PackedTokens, open_split

split = open_split("{dataset.uri}", "train", "{tokens.folder.split("/")[1]}")
inputs, labels = PackedTokens(split.shards, context=4096, seeds=Seeds(0)).batch(8).tensors("cpu")
print(inputs.shape)  # (8, 4096) int64""",
            ),
        ]
    if images is not None:
        blocks.append(
            (
                "Manifests, with uvd",
                f"""from uvd.manifests.dataset import Dataset, Shard
from uvd.manifests.stats import query

print(query(Dataset("{dataset.uri}"), "select source, layout, count(*) n from sequences group by all").to_pandas())""",
            )
        )
    return blocks


def _first_shard(dataset: Dataset, folders: list[str]) -> Shard | None:
    return next((shards[0] for folder in folders if (shards := dataset.shards(folder))), None)

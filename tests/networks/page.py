"""The page of the table: README.md of this room, written from the rows."""

import json
from collections.abc import Iterable
from pathlib import Path

from tests.networks.measuring import works
from tests.networks.names import networks

ROOM = Path(__file__).parent
ROWS, PAGE = ROOM / "rows.jsonl", ROOM / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
HEAD = (
    "| network | size | eval | train | weights | MACs | survived | budget | merged | s | MB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def read_rows(path: Path) -> dict[str, dict]:
    """The rows of a file by name, the last of each; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # not one half written
    return {row["name"]: row for row in rows}


def write_page(rows: dict[str, dict], page: Path) -> None:
    """Put the table of ``rows`` into ``page``, between its two marks."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


def table(rows: dict[str, dict]) -> str:
    """Versions, counts by family, the networks that have numbers, and why the others have none."""
    names = networks()
    known = [rows[name] for name in names if name in rows]
    machines = sorted({row["machine"] for row in known})
    parts = [*machines, f"{len(known)} of {len(names)} networks have been tried."]
    for room in ("torchvision", "timm"):
        own = [row for row in known if row["name"].startswith(f"{room}:")]
        parts += [f"## {room}", counts(own, names)]
        parts.append(HEAD + "".join(map(line, (row for row in own if row["reason"] is None))))
        refused = (f"| {short(row)} | {cell(row['reason'])} |\n" for row in own if row["reason"])
        parts.append("| no numbers | reason |\n|---|---|\n" + "".join(refused))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def counts(rows: Iterable[dict], names: dict[str, str]) -> str:
    """How many networks and families work, and of each other family how many do."""
    families: dict[str, list[bool]] = {}
    for row in rows:
        families.setdefault(names[row["name"]], []).append(works(row))
    whole = sum(map(all, families.values()))
    good = sum(map(sum, families.values()))
    tried = sum(map(len, families.values()))
    others = ", ".join(
        f"{family} {sum(found)}/{len(found)}"
        for family, found in sorted(families.items())
        if not all(found)
    )
    said = f"{good} of {tried} networks work, {whole} of {len(families)} families whole"
    return f"{said}; the others: {others}." if others else f"{said}."


def line(row: dict) -> str:
    """One network with its numbers."""
    single = " (float32)" if row["dtype"] == "float32" else ""
    numbers = [
        f"{row['size']}{single}",
        *(f"{row[key]:.0e}" for key in ("eval", "train")),
        *(f"{100 * row[key]:.0f} %" for key in ("weights", "macs")),
        f"{row['survived']:.0e}",
        f"{row['budget']:.3f}",
        f"{row['merged']:.0e}",
        f"{row['seconds']:.0f}",
        str(row["megabytes"]),
    ]
    return f"| {' | '.join([short(row), *numbers])} |\n"


def short(row: dict) -> str:
    name = row["name"].partition(":")[2]
    return name if row["reason"] or works(row) else f"**{name}**"


def cell(text: str) -> str:
    return text.replace("|", "/")

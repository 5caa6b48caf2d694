"""The table of networks: its rows, and that the page says what the rows say."""

from torch import nn

from tests.networks import measuring, page
from tests.networks.names import TIMM, networks


def tiny(name: str) -> nn.Module:
    if name == "none":
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    second = [nn.Conv2d(8, 9, 3, stride=4), nn.BatchNorm2d(9), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 3))


def test_rows_say_what_works_or_why_not():
    found, refused = (measuring.measured(name, tiny) for name in ("two", "none"))
    assert measuring.works(found) and found["dtype"] == "float64" and found["size"] == 64
    assert found["weights"] == found["macs"] == 1
    assert not measuring.works(refused) and refused["reason"]
    assert not measuring.works(found | {"merged": 1e-3})
    assert not measuring.works(found | {"budget": 0.7})
    assert set(refused) < {*found, "stage"}
    assert "| two | 64 | " in page.line(found | {"name": "timm:two"})


def test_the_page_says_what_the_rows_say():
    rows = page.read_rows(page.ROWS)
    assert {*rows} <= {*networks()}
    assert page.table(rows) in page.PAGE.read_text()


def test_sixty_networks_of_forty_families_and_all_of_torchvision():
    assert len(TIMM) >= 40
    assert sum(name.startswith("timm:") for name in networks()) >= 60
    assert sum(name.startswith("torchvision:") for name in networks()) >= 86


def test_half_a_row_is_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "a", "reason": "x"}\n{"name": "a", "reason": "y"}\n{"name": "b", "re')
    assert page.read_rows(path) == {"a": {"name": "a", "reason": "y"}}

"""The targets of the design, as data, and what this run says about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

NOT_MEASURED = "NOT MEASURED"


@dataclass(frozen=True)
class Target:
    """One line of the table of targets. `reached` is None when the run did not measure it: then it is not met."""

    row: str
    what: str
    least: float
    aim: float | None = None
    unit: str = "x"
    less_is_better: bool = False
    reached: float | None = None
    note: str = ""

    def measured(self, reached: float | None, note: str = "") -> Target:
        return replace(self, reached=reached, note=note)

    @property
    def met(self) -> bool:
        return self._reaches(self.least)

    def _reaches(self, limit: float) -> bool:
        if self.reached is None:
            return False
        return self.reached <= limit if self.less_is_better else self.reached >= limit

    @property
    def verdict(self) -> str:
        if self.reached is None:
            return NOT_MEASURED
        if not self.met:
            return "MISSED"
        return "aim reached" if self.aim is not None and self._reaches(self.aim) else "met"

    def number(self, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:,.0f}{self.unit}" if self.unit == "/s" else f"{value:.2f}{self.unit}"


MB_64 = Target("1", "AES-128-GCM burst, 64 B, against ipsec-mb 2.x direct", 1.0, 1.3)
MB_1420 = Target("2", "AES-128-GCM burst, 1420 B, against ipsec-mb 2.x direct", 1.0, 1.15)
MB_8900 = Target("2", "AES-128-GCM burst, 8900 B, against ipsec-mb 2.x direct", 1.0, 1.15)
ESP_DPDK = Target("3", "whole C ESP out, 64 B, against DPDK crypto-perf (crypto only)", 1.0, 1.5)
ESP_SECGW = Target("4", "whole C ESP, 64 B, against DPDK ipsec-secgw", 3.0, 5.0)
ESP_SAS = Target("5", "65,536 SAs against 64, cost per packet", 1.4, 1.2, less_is_better=True)
VHOST_64 = Target("6", "vhost-user transmit with ESP, 64 B, against testpmd without", 0.5, 0.8)
VHOST_1420 = Target("7", "vhost-user transmit with ESP, 1420 B, Gbit/s", 20, 40, " Gbit/s")
ESP_PYTHON = Target("8", "C ESP against the Python oracle, 64 B", 100)
ADMIN = Target("9", "RESOURCE_OBJ_CREATE + DESTROY of SAs through loopback", 10_000, 30_000, "/s")
SUITE = Target("10", "full conformance run on loopback, s", 20, 5, " s", less_is_better=True)
VFIO_64 = Target("11", "vfio-user transmit with ESP, 64 B, against the same over vhost-user", 0.9, 1.0)
TABLE = (
    MB_64, MB_1420, MB_8900, ESP_DPDK, ESP_SECGW, ESP_SAS, VHOST_64, VHOST_1420, ESP_PYTHON, ADMIN, SUITE, VFIO_64,
)  # fmt: skip
#: Rows that no part of this program can measure yet.
ELSEWHERE = {
    ESP_SECGW: "measured apart: ipsec-secgw is not packaged",
}


def show(results: Sequence[Target]) -> str:
    """The whole table of the design with what was reached; rows nobody measured are there too."""
    by_what = {result.what: result for result in results}
    lines = [
        "",
        f"{'row':>3}  {'target of the design':62} {'reached':>12} {'at least':>10} {'aim':>10}  verdict",
    ]
    for row in TABLE:
        result = by_what.get(row.what) or row.measured(None, ELSEWHERE.get(row, "not part of this run"))
        reached, least, aim = map(result.number, (result.reached, result.least, result.aim))
        lines.append(
            f"{result.row:>3}  {result.what:62} {reached:>12} {least:>10} {aim:>10}  {result.verdict}"
        )
        if result.note:
            lines.append(f"{'':5}{result.note}")
    return "\n".join(lines)

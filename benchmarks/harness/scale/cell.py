"""A measurement at one size, and the tables that it reads."""

from dataclasses import dataclass
from pathlib import Path

from harness.scale_data import INTERACTIONS_FILE, ITEMS_FILE, IdType, write_interactions, write_items


@dataclass(frozen=True)
class CellOptions:
    """Size of a measurement.

    Attributes:
        items: N.
        rows: M, number of interactions.
        users: U.
        scratch: directory of generated tables, runs and stores, which are kept.
        datasets: directory of public data sets.
        full: whether an epoch is run to its end instead of extrapolated from some of its steps.
        smoke: whether figures mean nothing, so that few steps are enough.
    """

    items: int
    rows: int
    users: int
    scratch: Path
    datasets: Path
    full: bool
    smoke: bool

    def write_tables(self, id_type: IdType = "integer") -> Path:
        """Write the tables of this size, if they are not there, and return their directory."""
        directory = self.scratch / f"tables-{self.items}-{self.rows}-{self.users}-{id_type}"
        write_interactions(
            directory / INTERACTIONS_FILE,
            n_users=self.users,
            n_items=self.items,
            n_rows=self.rows,
            id_type=id_type,
        )
        write_items(directory / ITEMS_FILE, n_items=self.items, id_type=id_type)
        return directory

    def get_work_dir(self, name: str) -> Path:
        """Return the path of a run or a store of this size."""
        return self.scratch / f"{name}-{self.items}-{self.rows}-{self.users}"
